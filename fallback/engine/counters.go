package engine

import (
	"sync/atomic"

	"countersign/fallback/p4rtserver"
	"countersign/tables"
)

// counts is one cell of a counter. The zero value is 0; it is safe for
// concurrent use.
type counts struct{ packets, bytes atomic.Uint64 }

func (c *counts) add(packets, bytes uint64) {
	c.packets.Add(packets)
	c.bytes.Add(bytes)
}

func (c *counts) load() p4rtserver.CounterData {
	return p4rtserver.CounterData{Packets: int64(c.packets.Load()), Bytes: int64(c.bytes.Load())}
}

func (c *counts) store(d p4rtserver.CounterData) {
	c.packets.Store(uint64(d.Packets))
	c.bytes.Store(uint64(d.Bytes))
}

// A cell of the pipeline's counters is counted under its number: the P4
// program's counters one behind the other, and what each stage decided.
const (
	cellDrops    = 0
	cellPunts    = cellDrops + tables.DropsCounterSize
	cellOutcomes = cellPunts + tables.PuntsCounterSize
	cellRx       = cellOutcomes + tables.OutcomesCounterSize
	cellTx       = cellRx + tables.PortRxCounterSize
	cellStages   = cellTx + tables.PortTxCounterSize
	cellCount    = cellStages + int(stageCount)*reasons

	reasons = tables.DropsCounterSize
)

// cellOf is the number of the first cell of an indirect counter.
func cellOf(id uint32) (int, bool) {
	switch id {
	case tables.DropsCounterID:
		return cellDrops, true
	case tables.PuntsCounterID:
		return cellPunts, true
	case tables.OutcomesCounterID:
		return cellOutcomes, true
	case tables.PortRxCounterID:
		return cellRx, true
	case tables.PortTxCounterID:
		return cellTx, true
	}
	return 0, false
}

// tally counts what a worker does within a batch, so that workers share no
// cache line for each packet. The zero value is ready; it is its worker's own.
type tally struct {
	cells   [cellCount]struct{ packets, bytes uint64 }
	touched []uint16
}

func (t *tally) count(cell int, bytes int) {
	c := &t.cells[cell]
	if c.packets == 0 {
		t.touched = append(t.touched, uint16(cell))
	}
	c.packets++
	c.bytes += uint64(bytes)
}

// flush adds the batch's counts to the pipeline's.
func (t *tally) flush(cells []counts) {
	for _, i := range t.touched {
		c := &t.cells[i]
		cells[i].packets.Add(c.packets)
		if c.bytes != 0 {
			cells[i].bytes.Add(c.bytes)
		}
		c.packets, c.bytes = 0, 0
	}
	t.touched = t.touched[:0]
}
