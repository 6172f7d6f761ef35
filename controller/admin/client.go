package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"

	"countersign/tag"
)

// maxAnswer bounds an answer that is not a stream, in bytes.
const maxAnswer = 64 << 20

// Client talks to the controller behind a socket. Make it with NewClient; it is
// safe for concurrent use.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client of the socket at path, which is not opened yet.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status returns the controller's state.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "status", nil, &s)
}

// Keys returns the keys that the controller knows.
func (c *Client) Keys(ctx context.Context) (keys []Key, err error) {
	return keys, c.call(ctx, http.MethodGet, "keys", nil, &keys)
}

// Rotate makes the next signing key of a suite current; it reports false where
// that waits for acknowledgements.
func (c *Client) Rotate(ctx context.Context, suite tag.Suite) (done bool, err error) {
	var r RotateResponse
	err = c.call(ctx, http.MethodPost, "keys/rotate", RotateRequest{Suite: suite}, &r)
	return r.Done, err
}

// KillSession removes a session, or reports that there was none.
func (c *Client) KillSession(ctx context.Context, f FiveTuple) (bool, error) {
	var r KillResponse
	err := c.call(ctx, http.MethodPost, "sessions/kill", f, &r)
	return r.Killed, err
}

// Sessions yields the sessions that f selects as they arrive, or one error at
// the end.
func (c *Client) Sessions(ctx context.Context, f Filter) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		body, err := c.do(ctx, http.MethodGet, "sessions?"+f.query().Encode(), nil)
		if err != nil {
			yield(Session{}, err)
			return
		}
		defer body.Close()
		for d := json.NewDecoder(body); ; {
			var s Session
			if err := d.Decode(&s); err != nil {
				if !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					yield(Session{}, fmt.Errorf("admin socket %s: sessions broke off: %w", c.path, err))
				}
				return
			}
			if !yield(s, nil) {
				return
			}
		}
	}
}

// call sends a request and reads its one answer.
func (c *Client) call(ctx context.Context, method, path string, req, answer any) error {
	body, err := c.do(ctx, method, path, req)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("admin socket %s: %w", c.path, err)
	}
	return nil
}

// do returns the body of an answer 200, which the caller closes.
func (c *Client) do(ctx context.Context, method, path string, req any) (io.ReadCloser, error) {
	var body io.Reader
	if req != nil {
		b, err := json.Marshal(req)
		if err != nil {
			return nil, fmt.Errorf("admin request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://controller/v1/"+path, body)
	if err != nil {
		return nil, fmt.Errorf("admin request: %w", err)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return nil, fmt.Errorf("%w: %w (is it running, and is this its socket?)", ErrUnreachable, op)
		}
		return nil, fmt.Errorf("admin socket %s: %w", c.path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var f failure
	if json.NewDecoder(io.LimitReader(resp.Body, maxRequest)).Decode(&f) != nil || f.Error == "" {
		f.Error = resp.Status
	}
	if resp.StatusCode == http.StatusBadRequest {
		return nil, fmt.Errorf("controller: %w", &refused{f.Error})
	}
	return nil, fmt.Errorf("controller: %s", f.Error)
}

// refused is ErrRequest as the controller words it.
type refused struct{ text string }

func (r *refused) Error() string { return r.text }
func (*refused) Unwrap() error   { return ErrRequest }
