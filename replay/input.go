package replay

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/controller/config"
	"countersign/packet/capture"
)

// Input is a capture of what came in by a port.
type Input struct {
	Port string // number or name in the configuration
	File string // pcap (also gzipped) or pcapng, with Ethernet headers
}

// ParseInput reads PORT=FILE.
func ParseInput(s string) (Input, error) {
	port, file, ok := strings.Cut(s, "=")
	if !ok || port == "" || file == "" {
		return Input{}, fmt.Errorf("%q is not PORT=FILE, as in 1=left.pcap", s)
	}
	return Input{port, file}, nil
}

// latest bounds times: the seconds of a pcap file have 32 bits.
const latest = (1<<32 - 1) * int64(time.Second)

// source is an open capture with its next packet.
type source struct {
	port   uint16
	file   string
	f      *os.File
	reader *capture.Reader
	head   capture.Packet
	at     int64 // of head, in nanoseconds since the Unix epoch
	err    error // why there is no head: io.EOF, or what was wrong
}

// resolvePort finds a port of the device by number, else by name.
func resolvePort(cfg *config.Config, device, port string) (uint16, error) {
	var all []string
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		number = 0
	}
	byName := uint16(0)
	for i := range cfg.Ports {
		p := &cfg.Ports[i]
		if p.Device != device {
			continue
		}
		if uint64(p.Port) == number {
			return p.Port, nil
		}
		if p.Name == port {
			byName = p.Port
		}
		all = append(all, fmt.Sprintf("%d (%s)", p.Port, p.Name))
	}
	if byName != 0 {
		return byName, nil
	}
	return 0, fmt.Errorf("device %s has no port %q; there are %s", device, port, strings.Join(all, ", "))
}

// openInputs opens every capture and reads its first packet. A capture that is
// none, or not of Ethernet, is an error; one that is damaged further on is not.
func openInputs(cfg *config.Config, device string, inputs []Input) (sources, error) {
	var all sources
	fail := func(in Input, err error) (sources, error) {
		all.close()
		return nil, fmt.Errorf("input %s=%s: %w", in.Port, in.File, err)
	}
	for _, in := range inputs {
		port, err := resolvePort(cfg, device, in.Port)
		if err != nil {
			return fail(in, err)
		}
		for _, s := range all {
			if s.port == port {
				return fail(in, fmt.Errorf("port %d has a capture already, %s", port, s.file))
			}
		}
		f, err := os.Open(in.File)
		if err != nil {
			return fail(in, withoutPath(err))
		}
		s := &source{port: port, file: in.File, f: f}
		all = append(all, s)
		if s.reader, err = capture.NewReader(f); err != nil {
			return fail(in, withoutPath(err))
		}
		s.next()
		if errors.Is(s.err, errNotEthernet) {
			return fail(in, s.err)
		}
	}
	slices.SortFunc(all, func(a, b *source) int { return cmp.Compare(a.port, b.port) })
	return all, nil
}

// withoutPath drops the file name from an error that is wrapped with it.
func withoutPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

var errNotEthernet = errors.New("link type raw IP: packets without an Ethernet header cannot come in by a port; capture on an Ethernet interface")

// next reads the next packet into head. A packet without time has that of the
// packet before it.
func (s *source) next() {
	p, err := s.reader.Next()
	if err == nil && !p.Ethernet {
		err = fmt.Errorf("packet %d: %w", p.Number, errNotEthernet)
	}
	if err != nil {
		s.err = err
		return
	}
	s.head = p
	switch at := p.Time; {
	case at.IsZero():
	case at.Unix() < 0:
		s.at = 0
	case at.Unix() >= latest/int64(time.Second):
		s.at = latest
	default:
		s.at = at.UnixNano()
	}
}

// sources are the captures in the order of their ports.
type sources []*source

// earliest is the capture whose next packet comes first, nil where none has
// one. Of equal times the lower port is first; packets of one capture keep
// their order.
func (all sources) earliest() *source {
	var first *source
	for _, s := range all {
		if s.err == nil && (first == nil || s.at < first.at) {
			first = s
		}
	}
	return first
}

// damage says what could not be read, by file and packet.
func (all sources) damage() error {
	var errs []error
	for _, s := range all {
		if s.err != nil && !errors.Is(s.err, io.EOF) {
			errs = append(errs, fmt.Errorf("input %d=%s: %w", s.port, s.file, s.err))
		}
	}
	return errors.Join(errs...)
}

func (all sources) close() {
	for _, s := range all {
		s.f.Close() // read only
	}
}
