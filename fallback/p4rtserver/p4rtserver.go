// Package p4rtserver is a P4Runtime v1 server over any data plane that
// implements Target. It knows no P4 program: a P4Info drives it. The server
// does what the specification demands of every target (arbitration, checks of
// ids, widths, kinds and scopes, references between action profiles and
// tables, per-update errors, wildcard reads, notifications); the target stores
// entries and forwards packets.
package p4rtserver
