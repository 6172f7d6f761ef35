// Package server is the directory: it enrols members, keeps what they publish,
// moves their keys through their states, and signs and pushes the bundle.
//
// All changes go through one goroutine, which gathers those that wait, applies
// them to a copy of the state, and commits them as one transaction (a group
// commit). What it serves is what it reads back from the store's watch, so that
// several servers can share one store.
package server

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"countersign/directory"
	"countersign/directory/clock"
	"countersign/directory/static"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrConfig is what every refusal of a Config wraps, with the key that is wrong.
var ErrConfig = errors.New("directory configuration")

// Config is the directory's configuration. It is plain data; the zero value
// lacks State, Alliance and Address.
type Config struct {
	State    string `yaml:"state"`    // directory, mode 0700
	KeyFile  string `yaml:"key_file"` // 32 bytes that encrypt the directory's keys at rest; default State/state.key, made on first use
	Listen   string `yaml:"listen"`   // default: the port of Address, on all addresses
	Address  string `yaml:"address"`  // host:port under which members reach it, put into tokens
	Alliance string `yaml:"alliance"` // a DNS label

	Carrier static.Carrier `yaml:"carrier"`

	BundleLifetime   time.Duration `yaml:"bundle_lifetime"`   // how long members work without the directory; default 24 h
	CertLifetime     time.Duration `yaml:"cert_lifetime"`     // of members; default 24 h
	OperatorLifetime time.Duration `yaml:"operator_lifetime"` // of operators' certificates; default 90 days
	TokenLifetime    time.Duration `yaml:"token_lifetime"`    // default 1 h

	AckTimeout     time.Duration `yaml:"ack_timeout"`     // until a member counts as behind; default 30 s
	Grace          time.Duration `yaml:"grace"`           // an old key is still accepted; default 1 min
	EchoOnly       time.Duration `yaml:"echo_only"`       // after grace, from echoing hosts; default 0: no such state
	SessionTimeout time.Duration `yaml:"session_timeout"` // longest of the alliance: how long tombstones stay; default 1 h

	JoinRate  float64 `yaml:"join_rate"`  // joins per second, default 10
	JoinBurst int     `yaml:"join_burst"` // default 50

	Log     *slog.Logger          `yaml:"-"` // default: discards
	Metrics prometheus.Registerer `yaml:"-"` // default: none
	Clock   clock.Clock           `yaml:"-"` // default: the machine's
}

// minDuration is the shortest that a duration may be configured to.
const minDuration = 10 * time.Millisecond

// Validate fills in the defaults and checks the rest. Errors wrap ErrConfig and
// name the key.
func (c *Config) Validate() error {
	fail := func(key, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %w", ErrConfig, key, fmt.Errorf(format, args...))
	}
	if c.State == "" {
		return fail("state", "is missing")
	}
	if err := directory.CheckName(c.Alliance); err != nil {
		return fail("alliance", "%w", err)
	}
	if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" {
		return fail("address", "%q is not host:port", c.Address)
	}
	c.KeyFile = cmp.Or(c.KeyFile, filepath.Join(c.State, "state.key"))
	if _, port, err := net.SplitHostPort(c.Address); err == nil {
		c.Listen = cmp.Or(c.Listen, ":"+port)
	}
	c.Listen = cmp.Or(c.Listen, ":7443")
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fail("listen", "%w", err)
	}
	if _, err := static.CarrierOf(c.Carrier.Kind, c.Carrier.Protocol, c.Carrier.Port); err != nil {
		return fail("carrier", "%w", err)
	}
	for _, d := range []struct {
		key   string
		value *time.Duration
		unset time.Duration
	}{
		{"bundle_lifetime", &c.BundleLifetime, 24 * time.Hour},
		{"cert_lifetime", &c.CertLifetime, 24 * time.Hour},
		{"operator_lifetime", &c.OperatorLifetime, 90 * 24 * time.Hour},
		{"token_lifetime", &c.TokenLifetime, time.Hour},
		{"ack_timeout", &c.AckTimeout, 30 * time.Second},
		{"grace", &c.Grace, time.Minute},
		{"session_timeout", &c.SessionTimeout, time.Hour},
	} {
		*d.value = cmp.Or(*d.value, d.unset)
		if *d.value < minDuration {
			return fail(d.key, "%v is shorter than %v", *d.value, minDuration)
		}
	}
	if c.EchoOnly < 0 {
		return fail("echo_only", "%v is negative", c.EchoOnly)
	}
	c.JoinRate, c.JoinBurst = cmp.Or(c.JoinRate, 10), cmp.Or(c.JoinBurst, 50)
	if c.JoinRate < 0 || c.JoinBurst < 0 {
		return fail("join_rate", "is negative")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.System{}
	}
	return nil
}
