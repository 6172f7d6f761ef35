package keys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"countersign/directory/bundle"
	"countersign/tag"
)

func TestVault(t *testing.T) {
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "key")
	v, err := OpenVault(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(keyFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v %v", info, err)
	}
	secret := []byte("a secret of some length")
	path := filepath.Join(dir, "file")
	if err := v.Write(path, secret); err != nil {
		t.Fatal(err)
	}
	onDisk, err := os.ReadFile(path)
	if err != nil || bytes.Contains(onDisk, secret) {
		t.Fatalf("on disk: %q %v", onDisk, err)
	}
	again, err := OpenVault(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := again.Read(path); err != nil || !bytes.Equal(b, secret) {
		t.Fatalf("read: %q %v", b, err)
	}
	other, err := OpenVault(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name  string
		vault *Vault
		path  string
		bytes []byte
		want  error
	}{
		{"missing", v, "none", nil, fs.ErrNotExist},
		{"empty", v, "empty", []byte{}, ErrSealedFile},
		{"bit flipped", v, "file", append(bytes.Clone(onDisk[:len(onDisk)-1]), onDisk[len(onDisk)-1]^1), ErrSealedFile},
		{"cut", v, "file", onDisk[:len(onDisk)-1], ErrSealedFile},
		{"another version", v, "file", append([]byte{2}, onDisk[1:]...), ErrSealedFile},
		{"renamed", v, "swapped", onDisk, ErrSealedFile},
		{"another key", other, "file", onDisk, ErrSealedFile},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, c.path)
			if c.bytes != nil {
				if err := os.WriteFile(path, c.bytes, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.vault.Read(path); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
	for _, c := range []struct {
		name string
		mode os.FileMode
		len  int
	}{{"readable by others", 0o644, 32}, {"short", 0o600, 31}} {
		t.Run("key file "+c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, make([]byte, c.len), c.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenVault(path); !errors.Is(err, ErrKeyFile) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestWriteFileLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	if err := WriteFile(filepath.Join(dir, "a"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "b"), nil); err == nil {
		t.Fatal("replaced a directory")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%v %v", entries, err)
	}
}

func TestRing(t *testing.T) {
	dir := t.TempDir()
	v, err := OpenVault(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "ring")
	r, err := LoadRing(path, v)
	if err != nil {
		t.Fatal(err)
	}
	_, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	seal, err := bundle.GenerateSealKey()
	if err != nil {
		t.Fatal(err)
	}
	to := map[string][]byte{"s1": seal.PublicKey().Bytes()}
	epochs := map[tag.KeyID]bool{}
	for _, suite := range tag.Suites {
		issue, err := tag.GenerateKey(suite)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			o, err := r.Add(issue, "c1", 7, identity)
			if err != nil {
				t.Fatal(err)
			}
			if epochs[o.ID] {
				t.Fatalf("%v twice", o.ID)
			}
			epochs[o.ID] = true
			p, err := o.Publication(to)
			if err != nil || len(p.Envelopes) != 1 {
				t.Fatalf("%v %v", p, err)
			}
			st, err := bundle.ParseStatement(o.Statement)
			if err != nil {
				t.Fatal(err)
			}
			opened, err := bundle.OpenKey(seal, "s1", p.Envelopes[0], st)
			if err != nil {
				t.Fatal(err)
			}
			r.Opened[o.ID] = opened
			o.MarkSealed(p, to, 9)
			if p, err := o.Publication(to); err != nil || len(p.Envelopes) != 0 {
				t.Fatalf("sealed twice: %v %v", p, err)
			}
		}
	}
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	again, err := LoadRing(path, v)
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Own) != 9 || len(again.Opened) != 9 {
		t.Fatalf("%d own, %d opened", len(again.Own), len(again.Opened))
	}
	issue, err := tag.GenerateKey(tag.Siphash)
	if err != nil {
		t.Fatal(err)
	}
	o, err := again.Add(issue, "c1", 7, identity)
	if err != nil || epochs[o.ID] {
		t.Fatalf("epoch %v given again after a restart: %v", o.ID, err)
	}
	for id, k := range again.Own {
		if id != o.ID && (k.Published != 9 || !bytes.Equal(k.Sealed["s1"], to["s1"])) {
			t.Fatalf("%v: %+v", id, k)
		}
	}
}
