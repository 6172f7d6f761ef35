package main

import (
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
)

// fields are those of a program with one header, h: name and width.
var fields = []struct {
	name  string
	width int
}{{"a", 64}, {"b", 64}, {"c", 16}, {"d", 1}, {"e", 32}}

// program assigns an expression to a field.
func program(field string, expression any) map[string]any {
	var hf []any
	for _, f := range fields {
		hf = append(hf, []any{f.name, f.width, false})
	}
	b, err := json.Marshal(map[string]any{
		"header_types": []any{map[string]any{"name": "t", "fields": hf}},
		"headers":      []any{map[string]any{"name": "h", "header_type": "t"}},
		"actions": []any{map[string]any{"primitives": []any{map[string]any{
			"op":         "assign",
			"parameters": []any{leaf(field), map[string]any{"type": "expression", "value": expression}},
		}}}},
	})
	if err != nil {
		panic(err)
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.UseNumber()
	var p map[string]any
	if err := d.Decode(&p); err != nil {
		panic(err)
	}
	return p
}

func assigned(p map[string]any) any {
	primitive := object(list(object(list(p["actions"])[0])["primitives"])[0])
	return list(primitive["parameters"])[1]
}

func leaf(name string) map[string]any {
	return map[string]any{"type": "field", "value": []any{"h", name}}
}

func hex(v *big.Int) map[string]any {
	return map[string]any{"type": "hexstr", "value": fmt.Sprintf("%#x", v)}
}

func node(op string, left, right any) map[string]any {
	return map[string]any{"type": "expression", "value": map[string]any{"op": op, "left": left, "right": right}}
}

func mask(bits int) map[string]any {
	return hex(new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(bits)), big.NewInt(1)))
}

// random is an expression as p4c writes them, of the width of its context:
// what may be longer or negative is masked, mostly.
func random(r *rand.Rand, depth int) map[string]any {
	if depth == 0 || r.IntN(8) == 0 {
		if r.IntN(4) == 0 {
			return hex(new(big.Int).Rsh(new(big.Int).SetUint64(r.Uint64()), uint(r.IntN(64))))
		}
		return leaf(fields[r.IntN(len(fields))].name)
	}
	left := func() map[string]any { return random(r, depth-1) }
	var n map[string]any
	switch op := []string{"+", "-", "*", "^", "|", "&", "<<", ">>", "~"}[r.IntN(9)]; op {
	case "<<", ">>":
		n = node(op, left(), hex(big.NewInt(int64(r.IntN(70)))))
	case "~":
		n = map[string]any{"type": "expression", "value": map[string]any{"op": op, "left": nil, "right": left()}}
	default:
		n = node(op, left(), left())
	}
	if r.IntN(4) > 0 {
		n = node("&", n, mask([]int{1, 13, 16, 32, 64, 64, 64}[r.IntN(7)]))
	}
	return n
}

// value is what bmv2 makes of an expression: integers of any length.
func value(n map[string]any, values map[string]*big.Int) *big.Int {
	switch n["type"] {
	case "field":
		return values[text(list(n["value"])[1])]
	case "hexstr":
		c, _ := constant(n)
		return c
	}
	e := object(n["value"])
	if _, wrapped := e["type"]; wrapped {
		return value(e, values)
	}
	r := value(object(e["right"]), values)
	z := new(big.Int)
	if e["op"] == "~" {
		return z.Not(r)
	}
	l := value(object(e["left"]), values)
	switch e["op"] {
	case "+":
		return z.Add(l, r)
	case "-":
		return z.Sub(l, r)
	case "*":
		return z.Mul(l, r)
	case "^":
		return z.Xor(l, r)
	case "|":
		return z.Or(l, r)
	case "&":
		return z.And(l, r)
	case "<<":
		return z.Lsh(l, uint(r.Uint64()))
	case ">>":
		return z.Rsh(l, uint(r.Uint64()))
	}
	panic(e["op"])
}

func TestThinChangesNoResult(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, 0))
	shorter := 0
	for range 4_000 {
		to := fields[r.IntN(len(fields))]
		expression := random(r, 5)
		p := program(to.name, expression)
		before, _ := json.Marshal(assigned(p))
		thin(p)
		after, _ := json.Marshal(assigned(p))
		if len(after) < len(before) {
			shorter++
		}
		for range 5 {
			values := map[string]*big.Int{}
			for _, f := range fields {
				values[f.name] = new(big.Int).SetUint64(r.Uint64() >> (64 - f.width))
			}
			width := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(to.width)), big.NewInt(1))
			want := new(big.Int).And(value(expression, values), width)
			if got := new(big.Int).And(value(object(assigned(p)), values), width); got.Cmp(want) != 0 {
				t.Fatalf("%s = %x, of %v, thinned %s = %x", before, want, values, after, got)
			}
		}
	}
	if shorter < 2_000 {
		t.Errorf("%d of 4,000 expressions became shorter", shorter)
	}
}

func TestThin(t *testing.T) {
	a, b, c := leaf("a"), leaf("b"), leaf("c")
	all := mask(64)
	rotl := node("|", node("&", node("<<", a, hex(big.NewInt(13))), all), node(">>", a, hex(big.NewInt(51))))
	for _, tc := range []struct {
		name             string
		to               string
		expression, want map[string]any
	}{
		{"sum", "a", node("&", node("+", a, b), all), wrapped(node("+", a, b))},
		{"rotation", "a", node("^", rotl, b), wrapped(node("^", node("|", node("<<", a, hex(big.NewInt(13))), node(">>", a, hex(big.NewInt(51)))), b))},
		{"cast", "e", node("&", c, mask(32)), c},
		{"sum that is shifted back", "a", node(">>", node("&", node("+", a, b), all), hex(big.NewInt(1))), nil},
		{"narrower than its field", "a", node("&", node("+", a, b), mask(32)), nil},
		{"difference", "a", node("&", node("-", a, b), all), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := program(tc.to, tc.expression)
			if tc.want == nil {
				tc.want = wrapped(tc.expression)
			}
			thin(p)
			got, _ := json.Marshal(assigned(p))
			want, _ := json.Marshal(tc.want)
			if string(got) != string(want) {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func wrapped(n map[string]any) map[string]any {
	return map[string]any{"type": "expression", "value": n}
}

func TestThinLeavesOddProgramsAlone(t *testing.T) {
	for _, s := range []string{
		`{}`, `{"actions": 1}`, `{"actions": [{"primitives": [{"op": "assign"}]}]}`,
		`{"actions": [{"primitives": [{"op": "assign", "parameters": [1, 2]}]}]}`,
	} {
		var p map[string]any
		if err := json.Unmarshal([]byte(s), &p); err != nil {
			t.Fatal(err)
		}
		before, _ := json.Marshal(p)
		thin(p)
		if after, _ := json.Marshal(p); string(after) != string(before) {
			t.Errorf("%s became %s", before, after)
		}
	}
}
