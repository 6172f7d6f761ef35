package admin

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
)

// Filter selects sessions; the zero value selects all. It is a plain value.
type Filter struct {
	Protocol uint8        // 0: any; query protocol=6
	Prefix   netip.Prefix // that either end lies in; query prefix=10.0.0.0/8
	Port     uint16       // of either end, 0: any; query port=443
	Zone     string       // of either side; query zone=lan
	Origin   string       // the sibling that announced it; query origin=s2
	// Skip and Limit page through sessions in the controller's order, which may
	// change from one request to the next; Limit 0 is all. Query skip=, limit=.
	Skip, Limit uint64
}

// Match reports whether s is selected, apart from Skip and Limit.
func (f *Filter) Match(s *Session) bool {
	return (f.Protocol == 0 || s.Protocol == f.Protocol) &&
		(!f.Prefix.IsValid() || f.Prefix.Contains(s.Low.Addr()) || f.Prefix.Contains(s.High.Addr())) &&
		(f.Port == 0 || s.Low.Port() == f.Port || s.High.Port() == f.Port) &&
		(f.Zone == "" || s.LowZone == f.Zone || s.HighZone == f.Zone) &&
		(f.Origin == "" || s.Origin == f.Origin)
}

// query is the inverse of parseFilter.
func (f *Filter) query() url.Values {
	q := url.Values{}
	number := func(key string, v uint64) {
		if v != 0 {
			q.Set(key, strconv.FormatUint(v, 10))
		}
	}
	text := func(key, v string) {
		if v != "" {
			q.Set(key, v)
		}
	}
	number("protocol", uint64(f.Protocol))
	number("port", uint64(f.Port))
	number("skip", f.Skip)
	number("limit", f.Limit)
	text("zone", f.Zone)
	text("origin", f.Origin)
	if f.Prefix.IsValid() {
		q.Set("prefix", f.Prefix.String())
	}
	return q
}

// parseFilter reads a query; its errors wrap ErrRequest and name the key.
func parseFilter(q url.Values) (f Filter, err error) {
	for key, values := range q {
		if len(values) != 1 {
			return f, fmt.Errorf("%w: %q is given %d times", ErrRequest, key, len(values))
		}
		v := values[0]
		var n uint64
		switch key {
		case "protocol":
			n, err = strconv.ParseUint(v, 10, 8)
			f.Protocol = uint8(n)
		case "port":
			n, err = strconv.ParseUint(v, 10, 16)
			f.Port = uint16(n)
		case "skip":
			f.Skip, err = strconv.ParseUint(v, 10, 64)
		case "limit":
			f.Limit, err = strconv.ParseUint(v, 10, 64)
		case "zone":
			f.Zone = v
		case "origin":
			f.Origin = v
		case "prefix":
			f.Prefix, err = netip.ParsePrefix(v)
		default:
			return f, fmt.Errorf("%w: unknown key %q", ErrRequest, key)
		}
		if err != nil {
			return f, fmt.Errorf("%w: %s: %w", ErrRequest, key, err)
		}
	}
	return f, nil
}
