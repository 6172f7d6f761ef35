package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"
	reflector "github.com/invopop/jsonschema"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"countersign/directory"
	"countersign/tag"
)

//go:generate go run ./schemagen -out ../../docs/controller.schema.json

// Schema returns the JSON Schema (draft 2020-12) of the configuration, as it
// stands in docs/controller.schema.json.
func Schema() ([]byte, error) {
	text := func(pattern, description string) *reflector.Schema {
		return &reflector.Schema{Type: "string", Pattern: pattern, Description: description}
	}
	r := &reflector.Reflector{
		FieldNameTag:   "yaml",
		ExpandedStruct: true,
		Namer:          func(t reflect.Type) string { return t.String() }, // two packages have a Config
		DoNotReference: true,
		Mapper: func(t reflect.Type) *reflector.Schema {
			switch t {
			case reflect.TypeFor[netip.Prefix]():
				return text("", "address/length, for example 10.1.0.0/16")
			case reflect.TypeFor[netip.Addr]():
				return text("", "IPv4 or IPv6 address")
			case reflect.TypeFor[Duration]():
				return text("^[-0-9.hmsuµn]+$", "duration, for example 500ms, 30s or 1h")
			case reflect.TypeFor[PortRange]():
				return &reflector.Schema{
					OneOf:       []*reflector.Schema{{Type: "integer"}, {Type: "string"}},
					Description: "port or range of ports, for example 80 or 1000-2000",
				}
			case reflect.TypeFor[tag.Suite]():
				return &reflector.Schema{Type: "string", Enum: []any{"siphash", "ed25519", "rsa2048"}}
			case reflect.TypeFor[directory.KeyState]():
				return &reflector.Schema{Type: "string", Enum: []any{"next", "current", "grace", "echo_only", "retired", "revoked"}}
			}
			return nil
		},
		// Only what has no default must be there; Validate says the rest.
		RequiredFromJSONSchemaTags: true,
	}
	s := r.Reflect(&Config{})
	s.Title = "Configuration of a Countersign controller"
	out, err := json.MarshalIndent(s, "", "  ")
	return append(out, '\n'), err
}

var compiled = sync.OnceValues(func() (*jsonschema.Schema, error) {
	text, err := Schema()
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("controller.schema.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("controller.schema.json")
})

// checkSchema holds the document against the schema. The error is an *Error.
func (c *Config) checkSchema(data []byte) error {
	schema, err := compiled()
	if err != nil {
		return fmt.Errorf("embedded schema: %w", err)
	}
	asJSON, err := yaml.YAMLToJSON(data)
	if err != nil {
		return located(c.source.file, err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		return &Error{File: c.source.file, Err: err}
	}
	err = schema.Validate(doc)
	var v *jsonschema.ValidationError
	if !errors.As(err, &v) {
		return err
	}
	for len(v.Causes) > 0 {
		v = v.Causes[0]
	}
	var path strings.Builder
	for _, step := range v.InstanceLocation {
		switch {
		case step != "" && strings.Trim(step, "0123456789") == "":
			fmt.Fprintf(&path, "[%s]", step)
		case path.Len() > 0:
			path.WriteString("." + step)
		default:
			path.WriteString(step)
		}
	}
	return c.At(path.String(), errors.New(v.ErrorKind.LocalizedString(message.NewPrinter(language.English))))
}
