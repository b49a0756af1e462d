package stage

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fill gives every field of v a value of its own, lists two elements.
func fill(v reflect.Value, next *int) {
	*next++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), next)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), next)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), next)
		}
	case reflect.String:
		v.SetString(string(rune('a' + *next%26)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8:
		v.SetUint(uint64(*next % 256))
	case reflect.Uint32:
		v.SetUint(uint64(-uint32(*next)))
	case reflect.Uint64:
		v.SetUint(-uint64(*next))
	case reflect.Int, reflect.Int64:
		v.SetInt(-int64(*next))
	default:
		panic(v.Kind())
	}
}

// A field that code forgets would silently be zero in the sandbox.
func TestPlanRoundTrip(t *testing.T) {
	var want Plan
	n := 0
	fill(reflect.ValueOf(&want).Elem(), &n)
	data := want.Encode()
	got, ok := decode(data)
	if !ok {
		t.Fatal("the encoded plan does not decode")
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for i := range data {
		if _, ok := decode(data[:i]); ok {
			t.Fatalf("the first %d of %d bytes decode", i, len(data))
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add((&Plan{Args: []string{"a"}, Root: -1, Mounts: []Mount{{Dest: "/x", Options: []Setting{{"a", "b"}}}}}).Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		decode(data)
	})
}

func TestSplit(t *testing.T) {
	for path, want := range map[string][]string{
		"/":           nil,
		"/a":          {"a"},
		"//a/./b/../": {"a", "b", ".."},
		"a":           {"a"},
	} {
		if diff := cmp.Diff(want, split(path)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", path, diff)
		}
	}
}
