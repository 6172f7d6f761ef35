package process

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/tag"
	"countersign/test/netlab"
)

var errPrivileges error

func TestMain(m *testing.M) {
	Main()
	errPrivileges = netlab.EnsurePrivileges()
	os.Exit(m.Run())
}

func lab(t *testing.T) (*netlab.Node, Options) {
	t.Helper()
	if errPrivileges != nil {
		t.Skipf("no network namespaces: %v", errPrivileges)
	}
	l, err := netlab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	node, err := l.Node("member")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Link(node, "in0", node, "out0", netlab.LinkOpts{MTU: 1800, NoIPv6: true}); err != nil {
		t.Fatal(err)
	}
	return node, Options{
		Target: Fallback, Suite: tag.Siphash, Egress: "trunk", InIf: "in0", OutIf: "out0",
		InAddr: "10.0.1.1/24", OutAddr: "10.0.2.1/24", Dst: "198.18.2.0/24", Via: "10.0.2.2",
		ViaMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}
}

func TestStart(t *testing.T) {
	node, o := lab(t)
	profiles := t.TempDir()
	t.Setenv(ProfileEnv, profiles)
	m, err := Start(t.Context(), node, o)
	if err != nil {
		t.Fatal(err)
	}
	dir := m.dir
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if found, _ := filepath.Glob(filepath.Join(profiles, "as-*.pprof")); len(found) != 2 {
		t.Errorf("profiles %v", found)
	}
}

func TestStartFails(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"target":        {func(o *Options) { o.Target = "hardware" }, `"hardware"`},
		"interface":     {func(o *Options) { o.InIf = "eth9" }, "eth9"},
		"configuration": {func(o *Options) { o.Dst = "nowhere" }, "nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			node, o := lab(t)
			c.change(&o)
			m, err := Start(t.Context(), node, o)
			if err == nil {
				m.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it to name %s", err, c.want)
			}
		})
	}
}
