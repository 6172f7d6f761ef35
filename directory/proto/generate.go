// Package directorypb is the directory's protocol, generated from
// directory.proto. Regenerating needs protoc, protoc-gen-go v1.36.12 and
// protoc-gen-go-grpc v1.6.2 on the PATH.
package directorypb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative directory.proto
