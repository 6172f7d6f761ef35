package bmv2

import (
	"context"
	"errors"
	"time"

	p4v1 "github.com/p4lang/p4runtime/go/p4/v1"

	"countersign/p4src"
	"countersign/tables"
	"countersign/test/dataplane"
)

// WriteRate is how many session entries a second bmv2 takes in batches.
type WriteRate struct {
	Batch     int
	PerSecond float64
}

// Writes inserts session entries by one caller that waits for each answer, for d
// with each size of a batch. It fails with dataplane.ErrUnavailable where there
// is no bmv2.
func Writes(ctx context.Context, batches []int, d time.Duration) (rates []WriteRate, err error) {
	info, err := p4src.P4Info()
	if err != nil {
		return nil, err
	}
	s, err := dataplane.Start(ctx, dataplane.Options{Kind: dataplane.BMv2, Info: info, Program: p4src.JSON})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	next := uint32(0)
	for _, size := range batches {
		first, start := next, time.Now()
		for time.Since(start) < d {
			updates := make([]*p4v1.Update, size)
			for i := range updates {
				e := tables.SessionV4Entry{
					Key:    tables.SessionV4Key{Low: next, High: target, Protocol: 17, LowPort: 1000, HighPort: 53},
					Action: tables.AdmittedV4{LowZone: tables.ZoneAny, HighZone: tables.ZoneAny},
				}
				if updates[i], err = e.Update(p4v1.Update_INSERT); err != nil {
					return rates, err
				}
				next++
			}
			if err := s.Write(ctx, updates...); err != nil {
				return rates, err
			}
		}
		rates = append(rates, WriteRate{size, float64(next-first) / time.Since(start).Seconds()})
	}
	return rates, nil
}
