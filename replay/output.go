package replay

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"countersign/controller/config"
	"countersign/fallback/pktio"
	"countersign/tag"
)

// VerdictsFile is the name of the file of JSON lines in the output directory.
const VerdictsFile = "verdicts.jsonl"

// CaptureFile is the name of a port's capture in the output directory.
func CaptureFile(port uint16) string { return fmt.Sprintf("port-%d.pcap", port) }

// Line says what became of one packet. It is plain data.
type Line struct {
	// Number of the packet in its capture, from 1; 0 where the controller sent
	// it.
	Number int `json:"number"`
	// Port it came in by; the CPU port where the controller sent it.
	Port uint16 `json:"port"`
	// Time in the capture.
	Time time.Time `json:"time"`
	// Verdict: forward, drop, or punt for a packet whose way ends at the
	// controller.
	Verdict string `json:"verdict"`
	// Reason of drop and punt, else empty.
	Reason string `json:"reason"`
	// EgressPort of forward, else null.
	EgressPort *uint16 `json:"egress_port"`
	// Stage of the pipeline that decided, or that handed the packet to the
	// controller which then dropped it.
	Stage string `json:"stage"`
	// Punted is why the controller decided about the packet, and Copied why it
	// was shown a copy.
	Punted string `json:"punted,omitempty"`
	Copied string `json:"copied,omitempty"`
	// From is "controller" for packets that it sent, and Answers the packet
	// that made it do so.
	From    string  `json:"from,omitempty"`
	Answers *Packet `json:"answers,omitempty"`
	// Captured and Length in bytes, where the capture has not all of the packet.
	Captured int `json:"captured,omitempty"`
	Length   int `json:"length,omitempty"`
}

// Packet names a packet of a capture. It is plain data.
type Packet struct {
	Number int    `json:"number"`
	Port   uint16 `json:"port"`
}

// entry is a line that may not be final yet.
type entry struct {
	Line
	at     int64
	waits  bool
	held   key
	tuple  tag.Tuple // of a held packet
	until  int64     // when it has waited too long
	expiry string    // the reason then
}

// outputs are the files of the output directory. Made by createOutputs; not
// safe for concurrent use.
type outputs struct {
	captures map[uint16]*captureFile
	verdicts *os.File
	buf      *bufio.Writer
	json     *json.Encoder
	queue    []*entry // lines in the packets' order, the first of which waits
}

type captureFile struct {
	f *os.File
	w *pktio.PcapWriter
}

// createOutputs makes the directory and in it a capture for each port of the
// device, and the file of lines, which go to also as well unless it is nil.
func createOutputs(dir string, cfg *config.Config, device string, in sources, also io.Writer) (*outputs, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, fmt.Errorf("output directory: %w", err)
	}
	o := &outputs{captures: map[uint16]*captureFile{}}
	fail := func(err error) (*outputs, error) {
		o.close()
		return nil, fmt.Errorf("output: %w", err)
	}
	for i := range cfg.Ports {
		p := &cfg.Ports[i]
		if p.Device != device || o.captures[p.Port] != nil {
			continue
		}
		f, err := create(filepath.Join(dir, CaptureFile(p.Port)), in)
		if err != nil {
			return fail(err)
		}
		w, err := pktio.NewPcapWriter(f)
		o.captures[p.Port] = &captureFile{f, w}
		if err != nil {
			return fail(err)
		}
	}
	var err error
	if o.verdicts, err = create(filepath.Join(dir, VerdictsFile), in); err != nil {
		return fail(err)
	}
	w := io.Writer(o.verdicts)
	if also != nil {
		w = io.MultiWriter(w, also)
	}
	o.buf = bufio.NewWriter(w)
	o.json = json.NewEncoder(o.buf)
	return o, nil
}

// create makes a file, which must not be one that is being read.
func create(path string, in sources) (*os.File, error) {
	if old, err := os.Stat(path); err == nil {
		for _, s := range in {
			if st, err := s.f.Stat(); err == nil && os.SameFile(old, st) {
				return nil, fmt.Errorf("%s is an input too; name another output directory", path)
			}
		}
	}
	return os.Create(path)
}

// send writes a frame to the capture of a port.
func (o *outputs) send(port uint16, frame []byte, at int64) error {
	c := o.captures[port]
	if c == nil {
		return fmt.Errorf("a packet leaves by port %d, which the configuration does not have", port)
	}
	if err := c.w.Write(frame, at); err != nil {
		return fmt.Errorf("output: %s: %w", CaptureFile(port), err)
	}
	return nil
}

// flush writes the lines up to the first that still waits.
func (o *outputs) flush() error {
	n := 0
	for ; n < len(o.queue) && !o.queue[n].waits; n++ {
		if err := o.json.Encode(&o.queue[n].Line); err != nil {
			return fmt.Errorf("output: %s: %w", VerdictsFile, err)
		}
	}
	o.queue = slices.Delete(o.queue, 0, n)
	return nil
}

func (o *outputs) close() error {
	var errs []error
	for _, c := range o.captures {
		if c.w != nil {
			errs = append(errs, c.w.Flush())
		}
		errs = append(errs, c.f.Close())
	}
	if o.verdicts != nil {
		if o.buf != nil {
			errs = append(errs, o.buf.Flush())
		}
		errs = append(errs, o.verdicts.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	return nil
}
