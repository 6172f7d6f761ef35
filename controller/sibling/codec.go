package sibling

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
	"unicode/utf8"

	"countersign/controller/session"
	pb "countersign/controller/sibling/proto"
	"countersign/tag"
)

// Why an announcement is refused, by its sender and by its receiver.
var (
	ErrTuple      = errors.New("malformed five-tuple")
	ErrName       = errors.New("zone or issuer too long or not UTF-8")
	ErrGeneration = errors.New("generation 0")
	ErrExpired    = errors.New("no time left")
)

// reasons are the label values of the errors.
var reasons = []struct {
	err  error
	name string
}{{ErrTuple, "tuple"}, {ErrName, "name"}, {ErrGeneration, "generation"}, {ErrExpired, "expired"}}

func reasonOf(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return "other"
}

const (
	maxName      = 64                 // bytes of a zone's or member's name
	maxRemaining = 7 * 24 * time.Hour // longest announced lifetime; receivers cut
)

// encode makes the message of a at the moment now. A lifetime is rounded up to
// the next millisecond.
func encode(a *session.Announcement, now time.Time) (*pb.Announcement, error) {
	if err := check(a); err != nil {
		return nil, err
	}
	left := a.Expiry.Sub(now)
	if left <= 0 && !a.Deleted {
		return nil, fmt.Errorf("%w: %v ended %v ago", ErrExpired, a.Tuple, -left)
	}
	left = min(max(left, 0), maxRemaining)
	return &pb.Announcement{
		Low: a.Tuple.Low().AsSlice(), High: a.Tuple.High().AsSlice(),
		Protocol: uint32(a.Tuple.Protocol()), Kind: uint32(a.Tuple.Kind()),
		LowPort: uint32(a.Tuple.LowPort()), HighPort: uint32(a.Tuple.HighPort()),
		InitiatorLow: a.InitiatorLow, LowZone: a.LowZone, HighZone: a.HighZone, Issuer: a.Issuer,
		Generation: a.Generation, Deleted: a.Deleted,
		RemainingMs: uint64((left + time.Millisecond - 1) / time.Millisecond),
	}, nil
}

// decode is the reverse for what origin sent.
func decode(m *pb.Announcement, origin string, now time.Time) (session.Announcement, error) {
	low, ok1 := netip.AddrFromSlice(m.GetLow())
	high, ok2 := netip.AddrFromSlice(m.GetHigh())
	if !ok1 || !ok2 || low.Is4() != high.Is4() {
		return session.Announcement{}, fmt.Errorf("%w: addresses of %d and %d bytes", ErrTuple, len(m.GetLow()), len(m.GetHigh()))
	}
	if m.Protocol > math.MaxUint8 || m.Kind > math.MaxUint16 || m.LowPort > math.MaxUint16 || m.HighPort > math.MaxUint16 {
		return session.Announcement{}, fmt.Errorf("%w: protocol %d, kind %d, ports %d and %d", ErrTuple, m.Protocol, m.Kind, m.LowPort, m.HighPort)
	}
	t, sorted := tag.NewTuple(uint8(m.Protocol), uint16(m.Kind), low, high, uint16(m.LowPort), uint16(m.HighPort))
	if !sorted {
		return session.Announcement{}, fmt.Errorf("%w: %v is not sorted", ErrTuple, t)
	}
	if m.RemainingMs == 0 && !m.Deleted {
		return session.Announcement{}, fmt.Errorf("%w: %v", ErrExpired, t)
	}
	left := maxRemaining
	if m.RemainingMs < uint64(left/time.Millisecond) {
		left = time.Duration(m.RemainingMs) * time.Millisecond
	}
	a := session.Announcement{
		Tuple: t, InitiatorLow: m.InitiatorLow, LowZone: m.LowZone, HighZone: m.HighZone,
		Origin: origin, Issuer: m.Issuer, Generation: m.Generation, Expiry: now.Add(left), Deleted: m.Deleted,
	}
	return a, check(&a)
}

// check is what holds at both ends. A generation of 0 would let a deletion
// touch sessions that are not the origin's.
func check(a *session.Announcement) error {
	if err := checkTuple(a.Tuple); err != nil {
		return err
	}
	for _, s := range []string{a.LowZone, a.HighZone, a.Issuer} {
		if len(s) > maxName || !utf8.ValidString(s) {
			return fmt.Errorf("%w: %.*q", ErrName, maxName, s)
		}
	}
	if a.Generation == 0 {
		return fmt.Errorf("%w: %v", ErrGeneration, a.Tuple)
	}
	return nil
}

// IP protocols whose ports are part of the five-tuple (docs/wire.md, kind 0).
const (
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoDCCP    = 33
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
)

// checkTuple returns ErrTuple where t is not in the form of docs/wire.md, The
// message M, or no session can have it.
func checkTuple(t tag.Tuple) error {
	if f := t.Family(); f != 4 && f != 6 {
		return fmt.Errorf("%w: family %d", ErrTuple, f)
	}
	low, high, lowPort, highPort := t.Low(), t.High(), t.LowPort(), t.HighPort()
	if same, sorted := tag.NewTuple(t.Protocol(), t.Kind(), low, high, lowPort, highPort); !sorted || same != t {
		return fmt.Errorf("%w: %v is not sorted", ErrTuple, t)
	}
	for _, a := range []netip.Addr{low, high} {
		if a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("%w: %v: address %v", ErrTuple, t, a)
		}
	}
	icmp := t.Protocol() == protoICMP || t.Protocol() == protoICMPv6
	ok := false
	switch t.Kind() {
	case tag.KindPorts:
		switch t.Protocol() {
		case protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPLite:
			ok = true
		case protoICMP, protoICMPv6:
			ok = lowPort == highPort
		default:
			ok = lowPort == 0 && highPort == 0
		}
	case tag.KindICMPOther:
		ok = icmp && lowPort == 0 && highPort == 0
	case tag.KindFragment: // an IPv4 identification has 16 bits
		ok = t.Family() == 6 || lowPort == 0
	}
	if !ok {
		return fmt.Errorf("%w: protocol %d, kind %d, ports %d and %d", ErrTuple, t.Protocol(), t.Kind(), lowPort, highPort)
	}
	return nil
}
