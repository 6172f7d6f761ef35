// Package siblingpb is the protocol between the members of a site, generated
// from sibling.proto. Regenerating needs protoc, protoc-gen-go v1.36.12 and
// protoc-gen-go-grpc v1.6.2 on the PATH.
package siblingpb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative sibling.proto
