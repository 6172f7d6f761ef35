package pktio

import "sync/atomic"

// counters is Stats as a port counts it; written by its worker, once a batch, and
// read by any goroutine.
type counters struct {
	rxPackets, rxBytes, txPackets, txBytes   atomic.Uint64
	rxRingFull, rxTooLong, rxTooShort        atomic.Uint64
	rxChecksumFinished, rxChecksumUnfinished atomic.Uint64
	txDropped, txLinkDown, linkDowns         atomic.Uint64
}

func (c *counters) received(packets int, bytes uint64) {
	c.rxPackets.Add(uint64(packets))
	c.rxBytes.Add(bytes)
}

func (c *counters) sent(packets int, bytes uint64) {
	c.txPackets.Add(uint64(packets))
	c.txBytes.Add(bytes)
}

func (c *counters) load() Stats {
	return Stats{
		RxPackets: c.rxPackets.Load(), RxBytes: c.rxBytes.Load(),
		TxPackets: c.txPackets.Load(), TxBytes: c.txBytes.Load(),
		RxRingFull: c.rxRingFull.Load(), RxTooLong: c.rxTooLong.Load(), RxTooShort: c.rxTooShort.Load(),
		RxChecksumFinished: c.rxChecksumFinished.Load(), RxChecksumUnfinished: c.rxChecksumUnfinished.Load(),
		TxDropped: c.txDropped.Load(), TxLinkDown: c.txLinkDown.Load(), LinkDowns: c.linkDowns.Load(),
	}
}
