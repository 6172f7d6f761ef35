package device

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// UpdateError is the failure of one update of a Write. errors.Is finds
// ErrUnconfirmed in one whose outcome is not known, and ErrNotPrimary in one
// that was not attempted for that reason; status.Code gives its code.
type UpdateError struct {
	Index   int    // in the slice given to Write
	Update  string // what was to be done to which entry, without action parameters
	Code    codes.Code
	Message string

	cause error
}

// Error formats e on one line.
func (e *UpdateError) Error() string {
	return fmt.Sprintf("update %d (%s): %v: %s", e.Index, e.Update, e.Code, e.Message)
}

// Unwrap returns the sentinel that e stands for, or nil.
func (e *UpdateError) Unwrap() error { return e.cause }

// GRPCStatus returns e as a status, for package status.
func (e *UpdateError) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// WriteError is the error of a Write of which some updates failed. All others
// have been applied.
type WriteError struct {
	Errors []*UpdateError // by ascending index
	Total  int            // updates in the Write
}

// Error gives the number of failures and the first of them.
func (e *WriteError) Error() string {
	return fmt.Sprintf("%d of %d updates failed, the first: %v", len(e.Errors), e.Total, e.Errors[0])
}

// Unwrap returns the updates' errors.
func (e *WriteError) Unwrap() []error {
	errs := make([]error, len(e.Errors))
	for i, u := range e.Errors {
		errs[i] = u
	}
	return errs
}

// Write applies updates and returns when the device has answered for each of
// them: nil, or a *WriteError that names those that failed. Updates of several
// callers share Write RPCs, of which several are outstanding at once; updates
// of the same entry are applied in the order in which they were given, others
// in any order. An update that refers to another entity therefore goes into a
// later Write ("Batching and Ordering of Updates").
//
// It fails as a whole, with nothing sent, with ErrNotPrimary while this
// controller may not write, with ErrStatic for an entity of the desired set,
// and with ErrInvalid for an update that no message can carry. When ctx ends
// first, Write returns its error; updates that were not sent by then never
// are, and ErrUnconfirmed is added if any was.
func (s *Session) Write(ctx context.Context, updates []*p4v1.Update) error {
	for i, u := range updates {
		if s.schema.static(u.GetEntity()) {
			return fmt.Errorf("update %d (%s): %w", i, s.describeUpdate(u), ErrStatic)
		}
	}
	w := s.writer.Load()
	if w == nil {
		return ErrNotPrimary
	}
	return w.write(ctx, updates)
}

func (s *Session) describeUpdate(u *p4v1.Update) string {
	return u.GetType().String() + " " + s.schema.describe(u.GetEntity())
}

// writer batches updates into Write RPCs. It is safe for concurrent use. It
// has goroutines only while updates wait, at most one for each RPC in flight.
type writer struct {
	send       func([]*p4v1.Update) error // one Write RPC
	describe   func(*p4v1.Update) string
	metrics    *deviceMetrics
	maxUpdates int
	maxBytes   int
	inFlight   int

	mu      sync.Mutex
	queue   []op                // waiting, in order
	head    int                 // of queue
	busy    map[uint64]struct{} // entries with an update in flight
	running int                 // goroutines in drain
	closed  error
	idle    sync.WaitGroup // of drain
}

// op is one update of a call.
type op struct {
	call   *call
	index  int
	update *p4v1.Update
	hash   uint64
	size   int
}

// call is one Write; its fields are guarded by the writer's mutex until done
// is closed.
type call struct {
	pending int // updates not answered yet
	sent    bool
	errs    []*UpdateError
	done    chan struct{}
}

func (w *writer) write(ctx context.Context, updates []*p4v1.Update) error {
	if len(updates) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{pending: len(updates), done: make(chan struct{})}
	ops := make([]op, len(updates))
	for i, u := range updates {
		size := proto.Size(u)
		if size += 1 + varintLen(size); size > w.maxBytes {
			return fmt.Errorf("%w: update %d (%s) takes %d bytes of a message's %d", ErrInvalid, i, w.describe(u), size, w.maxBytes)
		}
		ops[i] = op{c, i, u, entryHash(u.GetEntity()), size}
	}
	w.mu.Lock()
	if w.closed != nil {
		defer w.mu.Unlock()
		return w.closed
	}
	w.queue = append(w.queue, ops...)
	w.spawn()
	w.mu.Unlock()

	select {
	case <-c.done:
	case <-ctx.Done():
		if !w.abandon(c) {
			break
		}
		if c.sent {
			return fmt.Errorf("%w: %w", context.Cause(ctx), ErrUnconfirmed)
		}
		return context.Cause(ctx)
	}
	if len(c.errs) == 0 {
		return nil
	}
	sortByIndex(c.errs)
	return &WriteError{c.errs, len(updates)}
}

// abandon takes what c has in the queue out of it; false says that c is done.
func (w *writer) abandon(c *call) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.pending == 0 {
		return false
	}
	kept := w.queue[:w.head]
	for _, o := range w.queue[w.head:] {
		if o.call != c {
			kept = append(kept, o)
		}
	}
	clear(w.queue[len(kept):])
	w.queue = kept
	return true
}

// close fails what waits, and everything from now on, with err, and returns
// when no RPC is in flight.
func (w *writer) close(err error) {
	w.mu.Lock()
	w.closed = err
	waiting := w.queue[w.head:]
	w.queue, w.head = nil, 0
	w.settle(waiting, func(int, op) *UpdateError {
		return &UpdateError{Code: codes.Unavailable, Message: err.Error(), cause: err}
	})
	w.mu.Unlock()
	w.idle.Wait()
}

// spawn starts another drain if there is work and room for it.
func (w *writer) spawn() {
	if w.head < len(w.queue) && w.running < w.inFlight {
		w.running++
		w.idle.Go(w.drain)
	}
}

// drain sends batches until nothing is left that may be sent now.
func (w *writer) drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		batch := w.take()
		if len(batch) == 0 {
			w.running--
			return
		}
		w.spawn()
		w.mu.Unlock()
		w.deliver(batch)
		w.mu.Lock()
		for _, o := range batch {
			delete(w.busy, o.hash)
		}
	}
}

// take removes from the queue the next batch: of each entry the first update
// that waits, if none is in flight.
func (w *writer) take() []op {
	var batch []op
	bytes, i, kept := 0, w.head, 0
	for limit := w.head + 8*w.maxUpdates; i < len(w.queue) && i < limit && len(batch) < w.maxUpdates; i++ {
		o := w.queue[i]
		if _, busy := w.busy[o.hash]; busy {
			// Those that stay are moved together, right before i.
			w.queue[w.head+kept] = o
			kept++
			continue
		}
		if bytes+o.size > w.maxBytes {
			break
		}
		bytes += o.size
		w.busy[o.hash] = struct{}{}
		o.call.sent = true
		batch = append(batch, o)
	}
	copy(w.queue[i-kept:i], w.queue[w.head:w.head+kept])
	clear(w.queue[w.head : i-kept])
	w.head = i - kept
	if w.head == len(w.queue) {
		w.queue, w.head = w.queue[:0], 0
	} else if w.head > len(w.queue)/2 {
		n := copy(w.queue, w.queue[w.head:])
		clear(w.queue[n:])
		w.queue, w.head = w.queue[:n], 0
	}
	return batch
}

// deliver sends a batch and tells each update's call how it went. A batch that
// the device refuses as a whole, before trying any update, is halved and sent
// again, so that one caller's update does not fail those of others.
func (w *writer) deliver(batch []op) {
	updates := make([]*p4v1.Update, len(batch))
	for i, o := range batch {
		updates[i] = o.update
	}
	start := time.Now()
	err := w.send(updates)
	w.metrics.writeSeconds.Observe(time.Since(start).Seconds())
	w.metrics.batches.Inc()

	st := status.Convert(err)
	details := updateErrors(st, len(batch))
	if details == nil && len(batch) > 1 && (st.Code() == codes.InvalidArgument || st.Code() == codes.ResourceExhausted) {
		w.deliver(batch[:len(batch)/2])
		w.deliver(batch[len(batch)/2:])
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		w.settle(batch, func(int, op) *UpdateError { return nil })
	case details != nil:
		w.settle(batch, func(i int, _ op) *UpdateError {
			if details[i].GetCanonicalCode() == int32(codes.OK) {
				return nil
			}
			return &UpdateError{Code: codes.Code(details[i].GetCanonicalCode()), Message: details[i].GetMessage()}
		})
	default:
		cause := rpcCause(st.Code())
		w.settle(batch, func(int, op) *UpdateError {
			return &UpdateError{Code: st.Code(), Message: st.Message(), cause: cause}
		})
	}
}

// settle gives each op its outcome.
func (w *writer) settle(ops []op, outcome func(int, op) *UpdateError) {
	ok := 0
	for i, o := range ops {
		if e := outcome(i, o); e != nil {
			e.Index, e.Update = o.index, w.describe(o.update)
			o.call.errs = append(o.call.errs, e)
			w.metrics.update(e.Code, 1)
		} else {
			ok++
		}
		if o.call.pending--; o.call.pending == 0 {
			close(o.call.done)
		}
	}
	w.metrics.update(codes.OK, ok)
}

// rpcCause classifies a status that speaks of the RPC and not of its updates.
func rpcCause(c codes.Code) error {
	switch c {
	case codes.PermissionDenied:
		return ErrNotPrimary
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Internal, codes.Aborted, codes.DataLoss:
		return ErrUnconfirmed
	}
	return nil
}

// updateErrors returns the p4.v1.Error of each of n updates, or nil where the
// status does not hold exactly that ("Error Reporting" of the Write RPC).
func updateErrors(st *status.Status, n int) []*p4v1.Error {
	details := st.Proto().GetDetails()
	if len(details) != n {
		return nil
	}
	errs := make([]*p4v1.Error, n)
	for i, d := range details {
		errs[i] = new(p4v1.Error)
		if d.UnmarshalTo(errs[i]) != nil {
			return nil
		}
	}
	return errs
}

// failed returns the errors of a Write's updates, if that is what err is.
func failed(err error) []*UpdateError {
	var w *WriteError
	if errors.As(err, &w) {
		return w.Errors
	}
	return nil
}

func sortByIndex(errs []*UpdateError) {
	slices.SortFunc(errs, func(a, b *UpdateError) int { return cmp.Compare(a.Index, b.Index) })
}

func varintLen(n int) int { return protowire.SizeVarint(uint64(n)) }
