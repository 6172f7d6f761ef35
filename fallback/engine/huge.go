package engine

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// preferHugePages asks the kernel to back s, which nobody has touched yet, with
// huge pages: a search in a large table then does not wait for the walk through
// the page tables too. It is advice; where the kernel does not take it, nothing
// but speed is lost.
func preferHugePages[T any](s []T) []T {
	if size := uintptr(len(s)) * unsafe.Sizeof(s[0]); size >= hugePage/64 {
		first := uintptr(unsafe.Pointer(unsafe.SliceData(s))) &^ (hugePage - 1)
		last := (uintptr(unsafe.Pointer(unsafe.SliceData(s))) + size + hugePage - 1) &^ (hugePage - 1)
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, first, last-first, unix.MADV_HUGEPAGE)
	}
	return s
}
