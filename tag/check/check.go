// Package check runs vectors files of the shape of tag-v1.json against
// packages tag and packet, in both directions, so that this or any other
// implementation's examples can be compared bit for bit.
package check

import (
	"bytes"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/netip"
	"strings"

	"countersign/packet"
	"countersign/tag"
)

// maxFile bounds a vectors file in bytes.
const maxFile = 64 << 20

// ErrFile is returned for a file that is not a vectors file at all.
var ErrFile = errors.New("not a vectors file")

// Failure is one vector or packet that did not come out as the file says.
type Failure struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Report is the outcome of a run: each vector and each packet counts once.
type Report struct {
	OK       int       `json:"ok"`
	Failures []Failure `json:"failures"`
}

// Failed is the number of failures.
func (r *Report) Failed() int { return len(r.Failures) }

// String is "N ok, M failed".
func (r *Report) String() string { return fmt.Sprintf("%d ok, %d failed", r.OK, r.Failed()) }

type file struct {
	Issuers []issuerSpec `json:"issuers"`
	Vectors []vector     `json:"vectors"`
	Packets []packetCase `json:"packets"`
}

// bits are bytes that a file writes in hexadecimal. A wrong one is kept, so
// that the vector it belongs to can be named.
type bits struct {
	text string
	err  error
	b    []byte
}

func (h *bits) UnmarshalText(b []byte) error {
	h.text = string(b)
	h.b, h.err = hex.DecodeString(h.text)
	return nil
}

func (h *bits) integer() *big.Int { return new(big.Int).SetBytes(h.b) }

func (h *bits) uint64() uint64 { return h.integer().Uint64() }

type issuerSpec struct {
	UNID    *uint32 `json:"unid"`
	Siphash *bits   `json:"siphash"`
	Ed25519 *struct {
		Filter bits  `json:"filter"`
		Seed   *bits `json:"seed"`
		Public *bits `json:"public"`
	} `json:"ed25519"`
	RSA2048 *struct {
		N bits  `json:"n"`
		E int   `json:"e"`
		D *bits `json:"d"`
		P *bits `json:"p"`
		Q *bits `json:"q"`
	} `json:"rsa2048"`
}

type vector struct {
	Name           string  `json:"name"`
	Issuer         int     `json:"issuer"`
	Suite          string  `json:"suite"`
	Protocol       uint8   `json:"protocol"`
	Kind           uint16  `json:"kind"`
	Src            string  `json:"src"`
	SrcPort        uint16  `json:"src_port"`
	Dst            string  `json:"dst"`
	DstPort        uint16  `json:"dst_port"`
	Flags          uint8   `json:"flags"`
	Epoch          uint16  `json:"epoch"`
	Nonce          bits    `json:"nonce"`
	Identification *uint32 `json:"identification"`
	Message        *bits   `json:"message"`
	Digest         *bits   `json:"digest"`
	Valid          *bool   `json:"valid"`
	Reason         string  `json:"reason"`
	Tag            bits    `json:"tag"`
}

type packetCase struct {
	Name     string `json:"name"`
	Carrier  string `json:"carrier"`
	Issuer   int    `json:"issuer"`
	Suite    string `json:"suite"`
	Epoch    uint16 `json:"epoch"`
	Nonce    bits   `json:"nonce"`
	Untagged bits   `json:"untagged"`
	Tagged   bits   `json:"tagged"`
}

// issuer holds the keys of one issuer by suite. One without its private part
// in the file is verified only.
type issuer struct {
	unid   uint32
	issue  map[tag.Suite]*tag.IssueKey
	verify map[tag.Suite]*tag.VerifyKey
}

// Run checks every vector and packet of the file in r, at most 64 MiB. Its
// error is for a file that cannot be used: ErrFile with line, column and key,
// or tag.ErrKey for an issuer's keys.
func Run(r io.Reader) (*Report, error) {
	f, err := read(r)
	if err != nil {
		return nil, err
	}
	issuers, err := loadIssuers(f.Issuers)
	if err != nil {
		return nil, err
	}
	report := &Report{Failures: []Failure{}}
	count := func(section string, i int, name string, err error) {
		if name == "" {
			name = fmt.Sprintf("%s[%d]", section, i)
		}
		if err != nil {
			report.Failures = append(report.Failures, Failure{name, err.Error()})
		} else {
			report.OK++
		}
	}
	for i := range f.Vectors {
		count("vectors", i, f.Vectors[i].Name, f.Vectors[i].check(issuers))
	}
	for i := range f.Packets {
		count("packets", i, f.Packets[i].Name, f.Packets[i].check(issuers))
	}
	return report, nil
}

func read(r io.Reader) (*file, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrFile, maxFile)
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrFile, locate(data, err))
	}
	if len(f.Vectors)+len(f.Packets) == 0 {
		return nil, fmt.Errorf("%w: it has no vectors and no packets", ErrFile)
	}
	return &f, nil
}

// locate says where in data the JSON error err is.
func locate(data []byte, err error) string {
	offset, what := int64(-1), err.Error()
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &mismatch):
		offset = mismatch.Offset
		what = fmt.Sprintf("key %q: %s where %s belongs", mismatch.Field, mismatch.Value, mismatch.Type)
	}
	if offset < 0 || offset > int64(len(data)) {
		return what
	}
	before := data[:offset]
	line := 1 + bytes.Count(before, []byte("\n"))
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1)
	return fmt.Sprintf("line %d, column %d: %s", line, column, what)
}

func loadIssuers(specs []issuerSpec) ([]issuer, error) {
	issuers := make([]issuer, len(specs))
	seen := map[uint32]int{}
	for i := range specs {
		is := &issuers[i]
		if specs[i].UNID == nil {
			return nil, fmt.Errorf("%w: issuers[%d] has no unid", ErrFile, i)
		}
		is.unid = *specs[i].UNID
		if j, ok := seen[is.unid]; ok {
			return nil, fmt.Errorf("%w: issuers[%d] and issuers[%d] have the same unid %d", ErrFile, j, i, is.unid)
		}
		seen[is.unid] = i
		if err := is.load(&specs[i]); err != nil {
			return nil, fmt.Errorf("issuers[%d].%w", i, err)
		}
	}
	return issuers, nil
}

func (is *issuer) load(spec *issuerSpec) error {
	is.issue = map[tag.Suite]*tag.IssueKey{}
	is.verify = map[tag.Suite]*tag.VerifyKey{}
	if spec.Siphash != nil {
		mac, err := macKey(spec.Siphash)
		if err != nil {
			return fmt.Errorf("siphash: %w", err)
		}
		is.add(tag.NewSiphashKey(mac))
	}
	if s := spec.Ed25519; s != nil {
		filter, err := macKey(&s.Filter)
		if err != nil {
			return fmt.Errorf("ed25519.filter: %w", err)
		}
		if s.Seed != nil {
			key, err := tag.NewEd25519Key(filter, s.Seed.b)
			if err := errors.Join(s.Seed.err, err); err != nil {
				return fmt.Errorf("ed25519.seed: %w", err)
			}
			is.add(key)
		}
		if s.Public != nil {
			key, err := tag.NewEd25519VerifyKey(filter, s.Public.b)
			if err := errors.Join(s.Public.err, err); err != nil {
				return fmt.Errorf("ed25519.public: %w", err)
			}
			is.verify[tag.Ed25519] = key
		}
	}
	if s := spec.RSA2048; s != nil {
		if s.E != 65537 {
			return fmt.Errorf("rsa2048.e: %w: %d, want 65537", tag.ErrKey, s.E)
		}
		if s.D != nil && s.P != nil && s.Q != nil {
			key, err := tag.NewRSA2048Key(&rsa.PrivateKey{
				PublicKey: rsa.PublicKey{N: s.N.integer(), E: s.E},
				D:         s.D.integer(),
				Primes:    []*big.Int{s.P.integer(), s.Q.integer()},
			})
			if err := errors.Join(s.D.err, s.P.err, s.Q.err, err); err != nil {
				return fmt.Errorf("rsa2048: %w", err)
			}
			is.add(key)
		}
		key, err := tag.NewRSA2048VerifyKey(s.N.b)
		if err := errors.Join(s.N.err, err); err != nil {
			return fmt.Errorf("rsa2048.n: %w", err)
		}
		is.verify[tag.RSA2048] = key
	}
	return nil
}

func macKey(h *bits) (tag.MACKey, error) {
	if h.err != nil {
		return tag.MACKey{}, h.err
	}
	return tag.ParseMACKey(h.b)
}

func (is *issuer) add(key *tag.IssueKey) {
	is.issue[key.Suite()] = key
	is.verify[key.Suite()] = key.Verifier()
}

// pick returns the issuer and suite that a vector or packet names, and the hex
// errors of its fields.
func pick(issuers []issuer, index int, suite string, fields map[string]*bits) (*issuer, tag.Suite, error) {
	for name, h := range fields {
		if h != nil && h.err != nil {
			return nil, 0, fmt.Errorf("%s: %w", name, h.err)
		}
	}
	s, err := tag.ParseSuite(suite)
	if err != nil {
		return nil, 0, err
	}
	if index < 0 || index >= len(issuers) {
		return nil, 0, fmt.Errorf("issuer %d of %d", index, len(issuers))
	}
	if n := fields["nonce"]; len(n.b) != 8 {
		return nil, 0, fmt.Errorf("nonce: %d bytes, want 8", len(n.b))
	}
	if issuers[index].verify[s] == nil {
		return nil, 0, fmt.Errorf("issuer %d has no key of suite %v", index, s)
	}
	return &issuers[index], s, nil
}

func (v *vector) check(issuers []issuer) error {
	is, suite, err := pick(issuers, v.Issuer, v.Suite, map[string]*bits{
		"nonce": &v.Nonce, "message": v.Message, "digest": v.Digest, "tag": &v.Tag,
	})
	if err != nil {
		return err
	}
	src, err := netip.ParseAddr(v.Src)
	if err != nil {
		return fmt.Errorf("src: %w", err)
	}
	dst, err := netip.ParseAddr(v.Dst)
	if err != nil {
		return fmt.Errorf("dst: %w", err)
	}
	if src.Is4() != dst.Is4() {
		return fmt.Errorf("src %v and dst %v differ in family", src, dst)
	}
	if v.Valid == nil {
		return errors.New("no key valid")
	}
	if (v.Kind == tag.KindFragment) != (v.Identification != nil) {
		return fmt.Errorf("kind %d: identification goes with kind %d and no other", v.Kind, tag.KindFragment)
	}
	if !*v.Valid {
		return v.checkRefused(issuers, src, dst)
	}
	return v.checkValid(is, suite, src, dst)
}

// tuple is the five-tuple of the vector, from either end, with the protocol of
// a tag's next header.
func (v *vector) tuple(protocol uint8, src, dst netip.Addr, reply bool) tag.Tuple {
	a, b := v.SrcPort, v.DstPort
	if reply {
		src, dst, a, b = dst, src, b, a
	}
	if v.Identification != nil {
		a, b = uint16(*v.Identification>>16), uint16(*v.Identification)
	}
	t, _ := tag.NewTuple(protocol, v.Kind, src, dst, a, b)
	return t
}

func (v *vector) checkValid(is *issuer, suite tag.Suite, src, dst netip.Addr) error {
	if v.Message == nil || v.Digest == nil {
		return errors.New("a valid vector needs message and digest")
	}
	nonce := v.Nonce.uint64()
	t := v.tuple(v.Protocol, src, dst, false)
	if reply := v.tuple(v.Protocol, src, dst, true); reply != t {
		return fmt.Errorf("reply %v, packet %v", reply, t)
	}
	id := tag.KeyID{Suite: suite, UNID: is.unid, Epoch: v.Epoch}
	if got := tag.Message(nil, id.Word0(), nonce, &t); !bytes.Equal(got, v.Message.b) {
		return fmt.Errorf("message %x, file has %s", got, v.Message.text)
	}
	next := v.Protocol
	if v.Kind == tag.KindFragment {
		next = 44
	}

	if key := is.issue[suite]; key != nil {
		h, err := key.Issue(is.unid, v.Epoch, nonce, &t)
		if err != nil {
			return err
		}
		h.NextHeader, h.Flags = next, v.Flags
		if got := h.AppendTo(nil); !bytes.Equal(got, v.Tag.b) {
			return fmt.Errorf("issued tag %x, file has %s", got, v.Tag.text)
		}
	}

	h, err := tag.ParseHeader(v.Tag.b, packet.DefaultCarrier.Protocol, t.Family())
	if err != nil {
		return err
	}
	switch {
	case h.Len() != len(v.Tag.b):
		return fmt.Errorf("%d bytes behind the tag", len(v.Tag.b)-h.Len())
	case h.KeyID() != id:
		return fmt.Errorf("tag of %v, vector of %v", h.KeyID(), id)
	case h.NextHeader != next:
		return fmt.Errorf("next header %d, want %d", h.NextHeader, next)
	case h.Flags != v.Flags:
		return fmt.Errorf("flags %#x, vector has %#x", h.Flags, v.Flags)
	case suite != tag.RSA2048 && h.Nonce != nonce:
		return fmt.Errorf("nonce %016x, vector has %s", h.Nonce, v.Nonce.text)
	case len(v.Digest.b) != 8 || h.Digest != v.Digest.uint64():
		return fmt.Errorf("digest %016x, vector has %s", h.Digest, v.Digest.text)
	}
	if suite == tag.RSA2048 {
		if got, err := is.verify[suite].Recover(&h); err != nil || got != nonce {
			return fmt.Errorf("recovered nonce %016x, %v, vector has %s", got, err, v.Nonce.text)
		}
	}
	return is.verify[suite].Verify(&h, &t)
}

// checkRefused verifies as a member does that knows the file's issuers.
func (v *vector) checkRefused(issuers []issuer, src, dst netip.Addr) error {
	family := uint8(6)
	if src.Is4() {
		family = 4
	}
	h, err := tag.ParseHeader(v.Tag.b, packet.DefaultCarrier.Protocol, family)
	if err == nil {
		protocol := v.Protocol
		if v.Kind != tag.KindFragment || h.NextHeader != 44 {
			protocol = h.NextHeader
		}
		t := v.tuple(protocol, src, dst, false)
		err = verify(issuers, &h, &t)
	}
	if err == nil {
		return fmt.Errorf("accepted, want %s", v.Reason)
	}
	if got := tag.Reason(err); got != v.Reason {
		return fmt.Errorf("refused as %s (%w), want %s", got, err, v.Reason)
	}
	return nil
}

func verify(issuers []issuer, h *tag.Header, t *tag.Tuple) error {
	for i := range issuers {
		if key := issuers[i].verify[h.Suite]; issuers[i].unid == h.UNID && key != nil {
			return key.Verify(h, t)
		}
	}
	return fmt.Errorf("%w: %v", tag.ErrUnknownKey, h.KeyID())
}

func (p *packetCase) check(issuers []issuer) error {
	is, suite, err := pick(issuers, p.Issuer, p.Suite, map[string]*bits{
		"nonce": &p.Nonce, "untagged": &p.Untagged, "tagged": &p.Tagged,
	})
	if err != nil {
		return err
	}
	c := packet.DefaultCarrier
	switch p.Carrier {
	case "ip":
	case "udp":
		c.UDP = true
	default:
		return fmt.Errorf("unknown carrier %q, want ip or udp", p.Carrier)
	}

	var untagged, tagged packet.View
	if a := packet.ParseIP(p.Untagged.b, c, &untagged); a != packet.None {
		return fmt.Errorf("untagged: %v", a)
	}
	if untagged.Tagged {
		return errors.New("untagged: it has a tag")
	}
	if a := packet.ParseIP(p.Tagged.b, c, &tagged); a != packet.None {
		return fmt.Errorf("tagged: %v", a)
	}
	id := tag.KeyID{Suite: suite, UNID: is.unid, Epoch: p.Epoch}
	switch {
	case !tagged.Tagged:
		return errors.New("tagged: it has no tag")
	case tagged.Tag.KeyID() != id:
		return fmt.Errorf("tagged: tag of %v, want %v", tagged.Tag.KeyID(), id)
	case tagged.Tuple != untagged.Tuple:
		return fmt.Errorf("five-tuple tagged %v, untagged %v", tagged.Tuple, untagged.Tuple)
	}
	if err := is.verify[suite].Verify(&tagged.Tag, &tagged.Tuple); err != nil {
		return fmt.Errorf("tagged: %w", err)
	}

	h := tagged.Tag
	if key := is.issue[suite]; key != nil {
		if h, err = key.Issue(is.unid, p.Epoch, p.Nonce.uint64(), &untagged.Tuple); err != nil {
			return err
		}
	}
	got, err := packet.Insert(nil, p.Untagged.b, c, &h)
	if err != nil {
		return fmt.Errorf("inserting: %w", err)
	}
	if !bytes.Equal(got, p.Tagged.b) {
		return fmt.Errorf("inserting gives %x, file has %s", got, p.Tagged.text)
	}
	want := p.Untagged.b
	if tagged.Family == 6 && flowLabelZero(want) {
		want = append(append([]byte{want[0]}, p.Tagged.b[1]&0xf|want[1]&0xf0, p.Tagged.b[2], p.Tagged.b[3]), want[4:]...)
	}
	got, err = packet.Strip(nil, p.Tagged.b, c)
	if err != nil {
		return fmt.Errorf("removing: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("removing gives %x, want %x", got, want)
	}
	return nil
}

func flowLabelZero(ip []byte) bool { return ip[1]&0xf == 0 && ip[2] == 0 && ip[3] == 0 }

// Text is the report for people: the failures by name, then the totals.
func (r *Report) Text() string {
	var b strings.Builder
	for _, f := range r.Failures {
		fmt.Fprintf(&b, "FAIL %s: %s\n", f.Name, f.Why)
	}
	fmt.Fprintln(&b, r)
	return b.String()
}
