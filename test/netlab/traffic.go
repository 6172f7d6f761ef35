package netlab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// ErrIntegrity means that other bytes arrived than were sent.
var ErrIntegrity = errors.New("content differs from what was sent")

// MaxTransfer is the largest transfer in bytes.
const MaxTransfer = 1 << 40

// idleLimit ends a connection of the server that does not move.
const idleLimit = 30 * time.Second

// content returns the size bytes that both ends know from the seed.
func content(seed uint64, size int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(rand.NewChaCha8(key), size)
}

// Server is an HTTP server in a node; take it from [Node.ServeHTTP]. Its methods
// may be called from any goroutine.
type Server struct {
	// Addr is the address it listens on.
	Addr string

	srv            *http.Server
	done           chan struct{}
	sent, received atomic.Int64
}

// ServeHTTP starts an HTTP server on a TCP address of the node, such as
// "10.0.3.2:80", until the lab is closed. It serves Download and Upload.
func (n *Node) ServeHTTP(addr string) (*Server, error) {
	ln, err := n.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("node %s: serve HTTP: %w", n.name, err)
	}
	s := &Server{Addr: ln.Addr().String(), done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /content", s.get)
	mux.HandleFunc("POST /content", s.post)
	s.srv = &http.Server{Handler: mux, ReadHeaderTimeout: idleLimit}
	if err := n.lab.onClose(s.Close); err != nil {
		return nil, errors.Join(fmt.Errorf("node %s: serve HTTP: %w", n.name, err), ln.Close())
	}
	go func() {
		defer close(s.done)
		_ = s.srv.Serve(ln) // http.ErrServerClosed
	}()
	return s, nil
}

// Sent and Received are the bytes of content that the server has written and
// read.
func (s *Server) Sent() int64     { return s.sent.Load() }
func (s *Server) Received() int64 { return s.received.Load() }

// Close ends the server and its connections. It is idempotent.
func (s *Server) Close() error {
	err := s.srv.Close()
	<-s.done
	return err
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	t, err := parseTransfer(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(t.Size, 10))
	control := http.NewResponseController(w)
	moving := writerFunc(func(b []byte) (int, error) {
		_ = control.SetWriteDeadline(time.Now().Add(idleLimit))
		n, err := w.Write(b)
		s.sent.Add(int64(n))
		if err == nil {
			err = control.Flush()
		}
		return n, err
	})
	_, _ = io.CopyBuffer(moving, t.paced(r.Context(), content(t.Seed, t.Size)), make([]byte, t.chunk())) // the client sees what is missing
}

func (s *Server) post(w http.ResponseWriter, r *http.Request) {
	t, err := parseTransfer(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	control, sum := http.NewResponseController(w), sha256.New()
	_, err = io.Copy(writerFunc(func(b []byte) (int, error) {
		_ = control.SetReadDeadline(time.Now().Add(idleLimit))
		s.received.Add(int64(len(b)))
		return sum.Write(b)
	}), io.LimitReader(r.Body, t.Size+1))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprint(w, hex.EncodeToString(sum.Sum(nil)))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Transfer is one body to be moved over a connection of its own. The zero value
// is empty.
type Transfer struct {
	// Size in bytes, at most MaxTransfer.
	Size int64
	// Seed chooses the content.
	Seed uint64
	// Rate limits the sender, in bytes a second; 0 means no limit.
	Rate int64
}

func parseTransfer(q url.Values) (t Transfer, err error) {
	size, errSize := strconv.ParseInt(q.Get("size"), 10, 64)
	seed, errSeed := strconv.ParseUint(q.Get("seed"), 10, 64)
	limit, errRate := strconv.ParseInt(q.Get("rate"), 10, 64)
	if err := errors.Join(errSize, errSeed, errRate); err != nil {
		return t, err
	}
	if size < 0 || size > MaxTransfer || limit < 0 {
		return t, fmt.Errorf("size %d, rate %d: out of range", size, limit)
	}
	return Transfer{Size: size, Seed: seed, Rate: limit}, nil
}

func (t Transfer) url(addr string) string {
	return fmt.Sprintf("http://%s/content?size=%d&seed=%d&rate=%d", addr, t.Size, t.Seed, t.Rate)
}

// chunk is how much is sent at once: under a rate limit, a twentieth of a
// second's worth.
func (t Transfer) chunk() int {
	const most = 64 << 10
	if t.Rate == 0 {
		return most
	}
	return int(min(max(t.Rate/20, 1), most))
}

// paced limits r to the transfer's rate.
func (t Transfer) paced(ctx context.Context, r io.Reader) io.Reader {
	if t.Rate == 0 {
		return r
	}
	return &pacedReader{ctx, r, rate.NewLimiter(rate.Limit(t.Rate), t.chunk())}
}

type pacedReader struct {
	ctx   context.Context
	r     io.Reader
	limit *rate.Limiter
}

func (p *pacedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:min(len(b), p.limit.Burst())])
	if n > 0 {
		if err := p.limit.WaitN(p.ctx, n); err != nil {
			return 0, err
		}
	}
	return n, err
}

// Report is what came of a transfer.
type Report struct {
	// Bytes of content that arrived, also where the transfer failed.
	Bytes int64
	// SHA256 of what arrived, in hexadecimal.
	SHA256 string
	// Elapsed is from the connection's first packet to the last byte.
	Elapsed time.Duration
}

// Download gets t from a Server over a new TCP connection of the node. It returns
// ErrIntegrity where the content is not what the seed gives, and the context's
// error where that ended first.
func (n *Node) Download(ctx context.Context, addr string, t Transfer) (r Report, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url(addr), nil)
	if err != nil {
		return r, fmt.Errorf("node %s: download: %w", n.name, err)
	}
	sum := sha256.New()
	start := time.Now()
	err = n.do(req, func(body io.Reader) error {
		r.Bytes, err = io.Copy(sum, body)
		return err
	})
	return n.report(ctx, "download", r, t, sum, start, err)
}

// Upload sends t to a Server over a new TCP connection of the node; errors are
// those of Download.
func (n *Node) Upload(ctx context.Context, addr string, t Transfer) (r Report, err error) {
	sent := sha256.New()
	counted := io.TeeReader(content(t.Seed, t.Size), writerFunc(func(b []byte) (int, error) {
		r.Bytes += int64(len(b))
		return sent.Write(b)
	}))
	body := &closedReader{t.paced(ctx, counted), make(chan struct{}), sync.Once{}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url(addr), body)
	if err != nil {
		return r, fmt.Errorf("node %s: upload: %w", n.name, err)
	}
	req.ContentLength = t.Size
	start := time.Now()
	var got string
	err = n.do(req, func(body io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(body, sha256.Size*2+1))
		got = string(b)
		return err
	})
	<-body.closed // nobody counts any more
	if err == nil && got != hex.EncodeToString(sent.Sum(nil)) {
		err = ErrIntegrity
	}
	return n.report(ctx, "upload", r, t, sent, start, err)
}

// closedReader tells when a request's body is done with, which may be after the
// request.
type closedReader struct {
	io.Reader
	closed chan struct{}
	once   sync.Once
}

func (c *closedReader) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// report completes r and judges it.
func (n *Node) report(ctx context.Context, what string, r Report, t Transfer, sum hash.Hash, start time.Time, err error) (Report, error) {
	r.Elapsed, r.SHA256 = time.Since(start), hex.EncodeToString(sum.Sum(nil))
	if err == nil {
		want := sha256.New()
		_, _ = io.Copy(want, content(t.Seed, t.Size))
		if hex.EncodeToString(want.Sum(nil)) != r.SHA256 {
			err = ErrIntegrity
		}
	}
	if err == nil {
		return r, nil
	}
	if ctx.Err() != nil && !errors.Is(err, ErrIntegrity) {
		err = context.Cause(ctx)
	}
	return r, fmt.Errorf("node %s: %s of %d bytes stopped at %d: %w", n.name, what, t.Size, r.Bytes, err)
}

// do sends a request over a connection of its own and has f read the answer.
func (n *Node) do(req *http.Request, f func(io.Reader) error) error {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return n.DialContext(ctx, network, addr)
		},
		DisableKeepAlives:  true,
		DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 200))
		return fmt.Errorf("server: %s: %s", res.Status, text)
	}
	return f(res.Body)
}
