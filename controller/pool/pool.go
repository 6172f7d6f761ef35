// Package pool decides punts in parallel, bounded, and in order for each
// five-tuple: a worker has the flows that hash to it, and two queues, so that
// a flood of one kind of punt does not starve the others.
package pool

import (
	"context"
	"hash/maphash"
	"sync"
)

// Pool runs a handler on items. Make it with New; it is safe for concurrent
// use. Run must be running for anything to happen.
type Pool[T any] struct {
	workers []worker[T]
	handle  func(context.Context, T)
	seed    maphash.Seed
}

type worker[T any] struct {
	urgent, plain chan T
}

// New returns a pool of n workers, each of which lets depth items wait in
// each of its queues.
func New[T any](n, depth int, handle func(context.Context, T)) *Pool[T] {
	p := &Pool[T]{workers: make([]worker[T], n), handle: handle, seed: maphash.MakeSeed()}
	for i := range p.workers {
		p.workers[i] = worker[T]{make(chan T, depth), make(chan T, depth)}
	}
	return p
}

// Submit queues an item with the worker of its flow; it reports false, at
// once, where that worker's queue is full. Urgent items come first.
func (p *Pool[T]) Submit(flow uint32, urgent bool, item T) bool {
	h := maphash.Comparable(p.seed, flow)
	w := &p.workers[h%uint64(len(p.workers))]
	q := w.plain
	if urgent {
		q = w.urgent
	}
	select {
	case q <- item:
		return true
	default:
		return false
	}
}

// Run works until ctx ends; items still queued then are not handled.
func (p *Pool[T]) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range p.workers {
		w := &p.workers[i]
		wg.Go(func() {
			for {
				select {
				case item := <-w.urgent:
					p.handle(ctx, item)
					continue
				default:
				}
				select {
				case <-ctx.Done():
					return
				case item := <-w.urgent:
					p.handle(ctx, item)
				case item := <-w.plain:
					p.handle(ctx, item)
				}
			}
		})
	}
	wg.Wait()
}
