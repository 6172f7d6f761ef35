package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"countersign/directory"
	"countersign/tag"
)

const (
	maxRequest    = 64 << 10 // bytes of a request's body
	flushEvery    = 256      // sessions between two flushes
	ioTimeout     = 30 * time.Second
	shutdownGrace = 2 * time.Second
)

// Handler answers for b.
func Handler(b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		s := b.Status()
		if s.Devices == nil {
			s.Devices = []Device{}
		}
		if s.Signing == nil {
			s.Signing = []Key{}
		}
		answer(w, s)
	})
	mux.HandleFunc("GET /v1/keys", func(w http.ResponseWriter, _ *http.Request) {
		keys := b.Keys()
		if keys == nil {
			keys = []Key{}
		}
		answer(w, keys)
	})
	mux.HandleFunc("POST /v1/keys/rotate", func(w http.ResponseWriter, r *http.Request) {
		var req RotateRequest
		if err := decode(r, &req); err != nil {
			refuse(w, err)
			return
		}
		if !req.Suite.Valid() {
			refuse(w, fmt.Errorf("%w: no suite", ErrRequest))
			return
		}
		done, err := b.Rotate(r.Context(), req.Suite)
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, RotateResponse{Done: done})
	})
	mux.HandleFunc("GET /v1/sessions", func(w http.ResponseWriter, r *http.Request) { sessions(w, r, b) })
	mux.HandleFunc("POST /v1/sessions/kill", func(w http.ResponseWriter, r *http.Request) {
		var req FiveTuple
		if err := decode(r, &req); err != nil {
			refuse(w, err)
			return
		}
		t, err := req.Tuple()
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, KillResponse{Killed: b.KillSession(r.Context(), t)})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		write(w, http.StatusNotFound, failure{fmt.Sprintf("no %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

// sessions streams what the filter selects. A stream that ends early ends
// without HTTP's last chunk, so that the reader can tell.
func sessions(w http.ResponseWriter, r *http.Request, b Backend) {
	f, err := parseFilter(r.URL.Query())
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	var matched, sent uint64
	for s := range b.Sessions() {
		if !f.Match(&s) {
			continue
		}
		if matched++; matched <= f.Skip {
			continue
		}
		if sent%flushEvery == 0 {
			if sent > 0 && rc.Flush() != nil || r.Context().Err() != nil {
				panic(http.ErrAbortHandler)
			}
			// The limit is on progress, not on the whole stream. A writer
			// without deadlines keeps the server's.
			_ = rc.SetWriteDeadline(time.Now().Add(ioTimeout))
		}
		if enc.Encode(&s) != nil {
			panic(http.ErrAbortHandler)
		}
		if sent++; sent == f.Limit {
			return
		}
	}
}

func decode(r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if d.More() {
		return fmt.Errorf("%w: more than one object", ErrRequest)
	}
	return nil
}

func answer(w http.ResponseWriter, v any) { write(w, http.StatusOK, v) }

// refuse answers 400 to what the caller did wrong, 500 to the rest.
func refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if errors.Is(err, ErrRequest) || errors.Is(err, tag.ErrSuite) || errors.Is(err, directory.ErrState) {
		code = http.StatusBadRequest
	}
	write(w, code, failure{err.Error()})
}

func write(w http.ResponseWriter, code int, v any) {
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(v); err != nil {
		code = http.StatusInternalServerError
		body.Reset()
		// A string can always be encoded.
		_ = json.NewEncoder(&body).Encode(failure{err.Error()})
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body.Bytes()) // the reader may be gone
}

// Server answers on a socket. Make it with Listen.
type Server struct {
	listener net.Listener
	path     string
	backend  Backend
}

// Listen opens the socket at path with mode 0600, in the place of one that
// nobody serves any longer. The caller calls Serve, or Close.
func Listen(path string, b Backend) (*Server, error) {
	if c, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("admin socket %s: %w", path, ErrInUse), c.Close())
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("admin socket %s: %w", path, ErrNoSocket)
	}
	// Made in a directory of its own, it is never there with another mode.
	private, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), l.Close())
	}
	return &Server{listener: l, path: path, backend: b}, nil
}

// Close removes the socket. Serve does so itself.
func (s *Server) Close() error {
	err := s.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return errors.Join(err, os.Remove(s.path))
}

// Serve answers until ctx ends, which is no error, and removes the socket. It
// is called once.
func (s *Server) Serve(ctx context.Context) error {
	srv := &http.Server{
		Handler:           Handler(s.backend),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       ioTimeout,
		WriteTimeout:      ioTimeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxRequest,
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(s.listener) }()
	select {
	case err := <-failed:
		return errors.Join(fmt.Errorf("admin socket: %w", err), s.Close())
	case <-ctx.Done():
	}
	// The socket goes first, so that nobody finds one that does not answer.
	err := s.Close()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	down := srv.Shutdown(grace)
	if errors.Is(down, context.DeadlineExceeded) {
		down = srv.Close() // a stream that nobody reads
	}
	if errors.Is(down, net.ErrClosed) {
		down = nil // the listener, by Close above
	}
	return errors.Join(err, down)
}
