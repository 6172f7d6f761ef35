package p4rtserver

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What a Target and a Pipeline answer, wrapped with the operands that matter.
// Each is reported under the canonical code of its name.
var (
	ErrInvalidArgument    error = &sentinel{codes.InvalidArgument, "invalid argument"}
	ErrNotFound           error = &sentinel{codes.NotFound, "not found"}
	ErrAlreadyExists      error = &sentinel{codes.AlreadyExists, "already exists"}
	ErrPermissionDenied   error = &sentinel{codes.PermissionDenied, "permission denied"}
	ErrResourceExhausted  error = &sentinel{codes.ResourceExhausted, "resource exhausted"}
	ErrFailedPrecondition error = &sentinel{codes.FailedPrecondition, "failed precondition"}
	ErrOutOfRange         error = &sentinel{codes.OutOfRange, "out of range"}
	ErrUnimplemented      error = &sentinel{codes.Unimplemented, "unimplemented"}
)

// sentinel is an error with a canonical code.
type sentinel struct {
	code codes.Code
	text string
}

func (s *sentinel) Error() string { return s.text }

// failure is a sentinel with a message of its own. It is what the server's own
// checks return.
type failure struct {
	kind error
	text string
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.kind }

func failf(kind error, format string, args ...any) error {
	return &failure{kind, fmt.Sprintf(format, args...)}
}

// codeOf is the canonical code of an error: that of the sentinel it wraps.
func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	var s *sentinel
	if errors.As(err, &s) {
		return s.code
	}
	return codes.Internal
}

// rpcError is err as the status of a whole RPC.
func rpcError(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codeOf(err), err.Error())
}
