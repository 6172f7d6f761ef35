package fallback

import (
	"errors"
	"sync/atomic"

	"countersign/fallback/pktio"
)

// worker is one thread's ports; not safe for concurrent use but for stop and
// noPort.
type worker struct {
	f      *process
	id     int
	mux    *pktio.Mux
	out    [][]*pktio.Frame // to send, by port
	stop   atomic.Bool
	noPort atomic.Uint64 // packets for a port that is not there
}

// newWorkers gives each worker its queue of every port.
func newWorkers(f *process) ([]*worker, error) {
	workers := make([]*worker, f.Workers)
	for i := range workers {
		queues := make([]pktio.Port, len(f.ports.queues))
		for j := range queues {
			queues[j] = f.ports.queues[j][i]
		}
		mux, err := pktio.NewMux(queues...)
		if err != nil {
			for _, w := range workers[:i] {
				err = errors.Join(err, w.mux.Close())
			}
			return nil, err
		}
		workers[i] = &worker{f: f, id: i, mux: mux, out: make([][]*pktio.Frame, len(queues))}
		for j := range workers[i].out {
			workers[i].out[j] = make([]*pktio.Frame, 0, batchLen)
		}
	}
	return workers, nil
}
