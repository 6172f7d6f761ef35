package check

import (
	"os"
	"testing"
)

func TestSharedVectors(t *testing.T) {
	f, err := os.Open("../testdata/tag-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := Run(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r.Text())
	if r.Failed() != 0 || r.OK != 114 {
		t.Fatal(r)
	}
}
