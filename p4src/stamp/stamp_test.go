package stamp

import (
	"errors"
	"os"
	"testing"
	"testing/fstest"
)

func TestCompiledFilesBelongToTheSources(t *testing.T) {
	fsys := os.DirFS("..")
	s, err := os.ReadFile("../build/STAMP")
	if err != nil {
		t.Fatal(err)
	}
	if err := Check(fsys, string(s)); err != nil {
		t.Fatal(err)
	}
}

func TestCheckFindsChanges(t *testing.T) {
	files := func() fstest.MapFS {
		return fstest.MapFS{
			"a.p4":                           {Data: []byte("a")},
			"b.p4":                           {Data: []byte("b")},
			"build/countersign.json":         {Data: []byte("{}")},
			"build/countersign.p4info.txtpb": {Data: []byte("x")},
		}
	}
	s, err := Of(files(), "p4c 1")
	if err != nil {
		t.Fatal(err)
	}
	if err := Check(files(), s); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	for name, change := range map[string]func(fstest.MapFS){
		"edited source": func(f fstest.MapFS) { f["a.p4"].Data = []byte("A") },
		"new source":    func(f fstest.MapFS) { f["c.p4"] = &fstest.MapFile{} },
		"gone source":   func(f fstest.MapFS) { delete(f, "b.p4") },
		"edited output": func(f fstest.MapFS) { f["build/countersign.json"].Data = []byte("[]") },
	} {
		f := files()
		change(f)
		if err := Check(f, s); !errors.Is(err, ErrStale) {
			t.Errorf("%s: got %v, want ErrStale", name, err)
		}
	}
	if err := Check(files(), "nonsense"); !errors.Is(err, ErrStale) {
		t.Errorf("stamp without compiler: got %v, want ErrStale", err)
	}
}

func TestStrip(t *testing.T) {
	got, err := Strip([]byte(`{"b":[{"source_info":{"line":1},"x":1}],"a":2}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := "{\n\"a\": 2,\n\"b\": [{\"x\":1}]\n}\n"; string(got) != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	if _, err := Strip([]byte("{")); err == nil {
		t.Fatal("broken JSON accepted")
	}
}
