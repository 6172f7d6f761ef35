package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// source is what the generator takes from P4 source text.
type source struct {
	enums     []*enum
	constants []constant
}

// enum is a serializable enumeration.
type enum struct {
	name    string
	width   int
	members []constant
}

type constant struct {
	name  string
	value uint64
}

var (
	commentRE  = regexp.MustCompile(`(?s)//[^\n]*|/\*.*?\*/`)
	enumRE     = regexp.MustCompile(`(?s)\benum\s+bit<(\d+)>\s+(\w+)\s*\{([^}]*)\}`)
	memberRE   = regexp.MustCompile(`^(\w+)\s*=\s*(\w+)$`)
	constantRE = regexp.MustCompile(`(?m)^\s*(?:const\s+bit<\d+>\s+(\w+)\s*=\s*(\w+)\s*;|#define\s+(\w+)\s+(\w+)\s*$)`)

	// What a controller needs to know beside the P4Info: special ports and
	// zones, flags, clone session, carrier.
	interfaceRE = regexp.MustCompile(`^(CPU_\w+|DROP_PORT|PORT_\w+|ZONE_\w+|CARRIER_\w+)$`)
)

// parseSource reads the enumerations and constants of a P4 source file. It
// reads no other P4: what it does not know it leaves.
func parseSource(text string) (*source, error) {
	text = commentRE.ReplaceAllString(text, "")
	src := new(source)
	for _, m := range enumRE.FindAllStringSubmatch(text, -1) {
		width, err := strconv.Atoi(m[1])
		if err != nil || width < 1 || width > 64 {
			return nil, fmt.Errorf("enum %s: width %s", m[2], m[1])
		}
		e := &enum{name: m[2], width: width}
		for _, text := range strings.Split(strings.TrimSuffix(strings.TrimSpace(m[3]), ","), ",") {
			p := memberRE.FindStringSubmatch(strings.TrimSpace(text))
			if p == nil {
				return nil, fmt.Errorf("enum %s: cannot read member %q", e.name, strings.TrimSpace(text))
			}
			v, err := strconv.ParseUint(p[2], 0, width)
			if err != nil {
				return nil, fmt.Errorf("enum %s: %s: %w", e.name, p[1], err)
			}
			e.members = append(e.members, constant{p[1], v})
		}
		src.enums = append(src.enums, e)
	}
	for _, m := range constantRE.FindAllStringSubmatch(text, -1) {
		name, value := m[1]+m[3], m[2]+m[4]
		if !interfaceRE.MatchString(name) {
			continue
		}
		v, err := strconv.ParseUint(value, 0, 64)
		if err != nil {
			return nil, fmt.Errorf("constant %s: %w", name, err)
		}
		src.constants = append(src.constants, constant{name, v})
	}
	return src, nil
}
