// Package keys keeps a member's secrets: its own signing keys and the keys of
// others that it has opened, encrypted on disk under a key from a file.
package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Errors that callers branch on.
var (
	// ErrKeyFile is a key file of the wrong length, or readable by others.
	ErrKeyFile = errors.New("key file")
	// ErrSealedFile is a file that was changed, moved, or sealed under another
	// key.
	ErrSealedFile = errors.New("sealed file does not open")
)

const (
	vaultKeyLen  = 32 // AES-256
	vaultVersion = 1
)

// Vault reads and writes encrypted files (AES-256-GCM with a random nonce; the
// file's base name is authenticated, so that files cannot be swapped). The zero
// value is not usable. It is safe for concurrent use on different files.
type Vault struct{ aead cipher.AEAD }

// OpenVault reads the 32-byte key in a file, which only its owner may read, and
// makes it where it is missing.
func OpenVault(keyFile string) (*Vault, error) {
	key, err := os.ReadFile(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, vaultKeyLen)
		if _, err := rand.Read(key); err != nil {
			return nil, err
		}
		if err := WriteFile(keyFile, key); err != nil {
			return nil, fmt.Errorf("%w %s: %w", ErrKeyFile, keyFile, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	info, err := os.Stat(keyFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w %s: mode %#o lets others in, run chmod 600", ErrKeyFile, keyFile, mode)
	}
	if len(key) != vaultKeyLen {
		return nil, fmt.Errorf("%w %s: %d bytes, want %d", ErrKeyFile, keyFile, len(key), vaultKeyLen)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &Vault{aead}, nil
}

// Write encrypts plaintext into a file, atomically.
func (v *Vault) Write(path string, plaintext []byte) error {
	return WriteFile(path, v.aead.Seal([]byte{vaultVersion}, nil, plaintext, associated(path)))
}

// Read returns what Write was given, fs.ErrNotExist, or ErrSealedFile.
func (v *Vault) Read(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) < 1 || b[0] != vaultVersion {
		return nil, fmt.Errorf("%w: %s: not a sealed file of version %d", ErrSealedFile, path, vaultVersion)
	}
	plain, err := v.aead.Open(nil, nil, b[1:], associated(path))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: changed, or sealed under another key file", ErrSealedFile, path)
	}
	return plain, nil
}

func associated(path string) []byte {
	return append([]byte("countersign sealed file v1\x00"), filepath.Base(path)...)
}

// WriteFile puts b into a file of mode 0600, so that a crash leaves either the
// old content or the new: a temporary file, fsync, rename, fsync of the
// directory.
func WriteFile(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
