package pktio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// fill returns n frames with their number in every byte, each 60 bytes longer
// than the last but at most 1500.
func fill(t *testing.T, n int) []*Frame {
	t.Helper()
	frames := NewFrames(n)
	for i, f := range frames {
		must(t, f.Set(bytes.Repeat([]byte{byte(i)}, min(60*(i+1), 1500))))
		f.Time = int64(i) * 1000
	}
	return frames
}

func TestFrameInsertRemove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := NewFrames(1)[0]
		want := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "frame")
		if err := f.Set(want); err != nil {
			t.Fatal(err)
		}
		room := Headroom
		for range rapid.IntRange(0, 8).Draw(t, "steps") {
			at, n := rapid.IntRange(-1, 220).Draw(t, "at"), rapid.IntRange(-1, 300).Draw(t, "n")
			if rapid.Bool().Draw(t, "insert") {
				b, ok := f.Insert(at, n)
				if ok != (n >= 0 && n <= room && at >= 0 && at <= len(want)) {
					t.Fatalf("Insert(%d, %d) of %d bytes with room %d = %v", at, n, len(want), room, ok)
				}
				if ok {
					clear(b[at : at+n])
					want = append(append(append([]byte(nil), want[:at]...), make([]byte, n)...), want[at:]...)
					room -= n
				}
			} else {
				_, ok := f.Remove(at, n)
				if ok != (n >= 0 && at >= 0 && at+n <= len(want)) {
					t.Fatalf("Remove(%d, %d) of %d bytes = %v", at, n, len(want), ok)
				}
				if ok {
					want = append(append([]byte(nil), want[:at]...), want[at+n:]...)
					room += n
				}
			}
			if !bytes.Equal(f.Bytes(), want) || f.Room() != room || f.Len() != len(want) {
				t.Fatalf("frame %x room %d, want %x room %d", f.Bytes(), f.Room(), want, room)
			}
		}
	})
}

func TestFrameLimits(t *testing.T) {
	frames := NewFrames(2)
	longest := bytes.Repeat([]byte{7}, MaxFrame)
	must(t, frames[0].Set(longest), frames[1].Set([]byte{1}))
	if err := frames[0].Set(make([]byte, len(frames[0].buf)-Headroom+1)); !errors.Is(err, ErrNoRoom) {
		t.Errorf("Set of more than the buffer: %v", err)
	}
	if b, ok := frames[0].Insert(14, 284+8+8); !ok || len(b) != MaxFrame+300 {
		t.Errorf("no room for the longest tag: %v, %d bytes", ok, len(b))
	}
	frames[0].Truncate(20)
	frames[0].Truncate(30)
	frames[0].Truncate(-1)
	if frames[0].Len() != 20 || !bytes.Equal(frames[1].Bytes(), []byte{1}) {
		t.Errorf("lengths %d and %d", frames[0].Len(), frames[1].Len())
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text.pcap")
	raw := filepath.Join(dir, "raw.pcap")
	must(t, os.WriteFile(text, []byte("not a capture at all, but long enough"), 0o600))
	header := make([]byte, 24)
	binary.LittleEndian.PutUint32(header, 0xa1b2c3d4)
	binary.LittleEndian.PutUint32(header[4:], 2|4<<16)
	binary.LittleEndian.PutUint32(header[16:], 65535)
	binary.LittleEndian.PutUint32(header[20:], 101) // raw IP
	must(t, os.WriteFile(raw, header, 0o600))
	for _, c := range []struct {
		name, spec string
		o          Options
		is         error
		says       string
	}{
		{"unknown kind", "dpdk:eth0", Options{}, ErrSpec, `kind "dpdk" is not one of afpacket, pcap`},
		{"no name", "pcap:", Options{}, ErrSpec, "no name"},
		{"empty", "", Options{}, ErrSpec, "no name"},
		{"negative queues", "pcap:x", Options{Queues: -1}, ErrSpec, "-1 queues"},
		{"two queues of a capture", "pcap:x", Options{Queues: 2}, ErrSpec, "one queue"},
		{"missing capture", "pcap:" + filepath.Join(dir, "none"), Options{}, os.ErrNotExist, "none"},
		{"text", "pcap:" + text, Options{}, nil, "header"},
		{"link type", "pcap:" + raw, Options{}, ErrSpec, "not Ethernet"},
		{"output in no directory", "pcap:," + filepath.Join(dir, "no", "out"), Options{}, os.ErrNotExist, "out"},
		{"missing interface", "nosuchif0", Options{}, ErrNoInterface, "nosuchif0"},
		{"overlong interface", "afpacket:" + strings.Repeat("x", 40), Options{}, ErrNoInterface, "xxx"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ports, err := Open(c.spec, c.o)
			if err == nil {
				closeAll(ports)
			}
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Open(%q) = %v, want %v saying %q", c.spec, err, c.is, c.says)
			}
		})
	}
}

func TestPipe(t *testing.T) {
	a, b, err := Pipe("a", "b", 1500, 4)
	must(t, err)
	sent := fill(t, 6)
	if n, err := a.Send(sent); n != 4 || err != nil {
		t.Errorf("Send to a queue of 4 = %d, %v", n, err)
	}
	got := NewFrames(3)
	for _, want := range []int{3, 1} {
		n, err := b.Recv(got)
		if n != want || err != nil {
			t.Fatalf("Recv = %d, %v, want %d", n, err, want)
		}
	}
	if !bytes.Equal(got[0].Bytes(), sent[3].Bytes()) || got[0].Time != sent[3].Time || got[0].Room() != Headroom {
		t.Errorf("fourth frame %x at %d", got[0].Bytes(), got[0].Time)
	}
	must(t, sent[0].Set(make([]byte, 1500+L2Len+1)))
	if n, err := b.Send(sent[:1]); n != 0 || err != nil {
		t.Errorf("Send above the MTU = %d, %v", n, err)
	}
	if s := a.Stats(); s.TxPackets != 4 || s.TxDropped != 2 || s.TxBytes != 60+120+180+240 {
		t.Errorf("a's stats %+v", s)
	}
	if s := b.Stats(); s.RxPackets != 4 || s.RxBytes != 600 || s.TxDropped != 1 {
		t.Errorf("b's stats %+v", s)
	}

	_, _ = a.Send(sent[1:2])
	must(t, a.Close(), a.Close())
	if n, err := b.Recv(got); n != 1 || err != nil {
		t.Errorf("Recv of what was left = %d, %v", n, err)
	}
	if _, err := b.Recv(got); err != io.EOF {
		t.Errorf("Recv behind the end: %v", err)
	}
	if n, err := b.Send(sent[1:2]); n != 0 || err != nil {
		t.Errorf("Send to a closed end = %d, %v", n, err)
	}
	if _, err := a.Send(sent[1:2]); !errors.Is(err, ErrClosed) {
		t.Errorf("Send on a closed port: %v", err)
	}
	must(t, b.Close())
	for _, bad := range [][2]int{{0, 1}, {MaxMTU + 1, 1}, {1500, 0}} {
		if _, _, err := Pipe("a", "b", bad[0], bad[1]); !errors.Is(err, ErrSpec) {
			t.Errorf("Pipe of MTU %d, depth %d: %v", bad[0], bad[1], err)
		}
	}
}

// Recv waits, and is ended by a frame, Wake and Close.
func TestRecvWaits(t *testing.T) {
	a, b, err := Pipe("a", "b", 1500, 4)
	must(t, err)
	defer a.Close()
	type result struct {
		n   int
		err error
	}
	results := make(chan result)
	go func() {
		frames := NewFrames(4)
		for {
			n, err := b.Recv(frames)
			results <- result{n, err}
			if err != nil {
				return
			}
		}
	}()
	_, err = a.Send(fill(t, 1))
	must(t, err)
	if r := <-results; r != (result{1, nil}) {
		t.Errorf("after Send: %+v", r)
	}
	b.Wake()
	if r := <-results; r != (result{0, nil}) {
		t.Errorf("after Wake: %+v", r)
	}
	must(t, b.Close())
	if r := <-results; !errors.Is(r.err, ErrClosed) {
		t.Errorf("after Close: %+v", r)
	}
}

func TestMux(t *testing.T) {
	a0, b0, err := Pipe("a0", "b0", 1500, 16)
	must(t, err)
	a1, b1, err := Pipe("a1", "b1", 1500, 16)
	must(t, err)
	m, err := NewMux(b0, b1)
	must(t, err)
	if p := m.Ports(); len(p) != 2 || p[1] != b1 {
		t.Errorf("Ports = %v", p)
	}
	for _, p := range []Port{a0, a1} {
		_, err := p.Send(fill(t, 4))
		must(t, err)
	}
	frames := NewFrames(2)
	var order []int
	for range 4 {
		n, port, err := m.Recv(frames)
		must(t, err)
		if n != 2 {
			t.Errorf("%d frames of port %d", n, port)
		}
		order = append(order, port)
	}
	if order[0] == order[1] || order[2] == order[3] {
		t.Errorf("ports did not take turns: %v", order)
	}
	m.Wake()
	if n, port, err := m.Recv(frames); n != 0 || port != -1 || err != nil {
		t.Errorf("Recv after Wake = %d, %d, %v", n, port, err)
	}
	must(t, a0.Close())
	if _, port, err := m.Recv(frames); port != 0 || err != io.EOF {
		t.Errorf("Recv with an ended port = %d, %v", port, err)
	}
	time.AfterFunc(time.Millisecond, func() { _, _ = a1.Send(fill(t, 1)) })
	if n, port, err := m.Recv(frames); n != 1 || port != 1 || err != nil {
		t.Errorf("Recv from the other = %d, %d, %v", n, port, err)
	}
	must(t, a1.Close())
	if _, port, err := m.Recv(frames); port != 1 || err != io.EOF {
		t.Errorf("Recv with the other ended = %d, %v", port, err)
	}
	if _, port, err := m.Recv(frames); port != -1 || err != io.EOF {
		t.Errorf("Recv with all ended = %d, %v", port, err)
	}
	must(t, m.Close(), m.Close())
	if _, _, err := m.Recv(frames); !errors.Is(err, ErrClosed) {
		t.Errorf("Recv on a closed Mux: %v", err)
	}
}

func TestMuxCloseEndsRecv(t *testing.T) {
	_, b, err := Pipe("a", "b", 1500, 1)
	must(t, err)
	m, err := NewMux(b)
	must(t, err)
	result := make(chan error)
	go func() {
		_, _, err := m.Recv(NewFrames(1))
		result <- err
	}()
	must(t, m.Close())
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("Recv = %v", err)
	}
}

func TestPcap(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one.pcap"), filepath.Join(dir, "two.pcap")
	out, err := Open("pcap:,"+one, Options{})
	must(t, err)
	sent := fill(t, 10)
	sent[9].Time = 1234567890123456789
	if n, err := out[0].Send(sent); n != 10 || err != nil {
		t.Fatalf("Send = %d, %v", n, err)
	}
	if _, err := out[0].Recv(NewFrames(1)); err != io.EOF {
		t.Errorf("Recv without input: %v", err)
	}
	must(t, closeAll(out), closeAll(out))

	copied, err := Open("pcap:"+one+","+two, Options{})
	must(t, err)
	frames := NewFrames(4)
	total := 0
	for {
		n, err := copied[0].Recv(frames)
		if err == io.EOF {
			break
		}
		must(t, err)
		for i, f := range frames[:n] {
			if want := sent[total+i]; !bytes.Equal(f.Bytes(), want.Bytes()) || f.Time != want.Time {
				t.Errorf("frame %d: %d bytes at %d", total+i, f.Len(), f.Time)
			}
		}
		_, err = copied[0].Send(frames[:n])
		must(t, err)
		total += n
	}
	if s := copied[0].Stats(); total != 10 || s.RxPackets != 10 || s.TxPackets != 10 {
		t.Errorf("%d frames, stats %+v", total, s)
	}
	must(t, closeAll(copied))
	a, err := os.ReadFile(one)
	must(t, err)
	b, err := os.ReadFile(two)
	must(t, err)
	if !bytes.Equal(a, b) {
		t.Error("the copy differs")
	}

	must(t, os.WriteFile(two, a[:len(a)-1], 0o600))
	short, err := Open("pcap:"+two, Options{})
	must(t, err)
	defer closeAll(short)
	many := NewFrames(20)
	if n, err := short[0].Recv(many); n != 9 || err != nil {
		t.Errorf("Recv of a capture cut short = %d, %v", n, err)
	}
	for range 2 {
		if _, err := short[0].Recv(many); err == nil || err == io.EOF || !strings.Contains(err.Error(), "packet 10") {
			t.Errorf("Recv behind the cut: %v", err)
		}
	}
	if n, err := short[0].Send(sent); n != 0 || err != nil || short[0].Stats().TxDropped != 10 {
		t.Errorf("Send without output = %d, %v, %+v", n, err, short[0].Stats())
	}
}

func TestPcapSkipsBadFrames(t *testing.T) {
	var b bytes.Buffer
	w, err := NewPcapWriter(&b)
	must(t, err)
	for _, size := range []int{13, MaxFrame, MaxFrame + 1, 14} {
		must(t, w.Write(make([]byte, size), 0))
	}
	must(t, w.Flush())
	name := filepath.Join(t.TempDir(), "bad.pcap")
	must(t, os.WriteFile(name, b.Bytes(), 0o600))
	ports, err := Open("pcap:"+name, Options{})
	must(t, err)
	defer closeAll(ports)
	n, err := ports[0].Recv(NewFrames(8))
	must(t, err)
	if s := ports[0].Stats(); n != 2 || s.RxTooShort != 1 || s.RxTooLong != 1 || s.RxPackets != 2 {
		t.Errorf("%d frames, stats %+v", n, s)
	}
}

func FuzzPcapReader(f *testing.F) {
	var b bytes.Buffer
	w, err := NewPcapWriter(&b)
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(w.Write(make([]byte, 60), 1), w.Write(make([]byte, 20), 2), w.Flush()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(ngFile(binary.LittleEndian, 9))
	f.Add(ngFile(binary.BigEndian, 0x8a))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := NewPcapReader(bytes.NewReader(data))
		if err != nil {
			return
		}
		for range len(data) + 1 {
			frame, _, err := r.Next()
			if err != nil {
				if _, _, again := r.Next(); again != err {
					t.Fatalf("first %v, then %v", err, again)
				}
				return
			}
			if len(frame) > len(data) {
				t.Fatalf("%d bytes from %d", len(frame), len(data))
			}
		}
		t.Fatal("more frames than bytes")
	})
}

func TestNoAllocations(t *testing.T) {
	a, b, err := Pipe("a", "b", 1500, 64)
	must(t, err)
	defer a.Close()
	m, err := NewMux(b)
	must(t, err)
	defer m.Close()
	sent, got := fill(t, 64), NewFrames(64)
	if n := testing.AllocsPerRun(100, func() {
		_, _ = a.Send(sent)
		_, _, _ = m.Recv(got)
		got[0].Insert(14, 284)
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}
