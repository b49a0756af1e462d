package remotecache

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"

	"github.com/opencontainers/go-digest"
)

// The document of BuildKit's caches (moby/buildkit v0.34,
// cache/remotecache/v1/types), which has records of keys, layers, and which
// layers a record's result has:
//
//	record    digest, per input the records that may stand there, results
//	result    the top one of a stack of layers, or a list of layers
//
// What BuildKit computes as a record's digest is an operation's, dhow's keys are
// hashes of operation and inputs. Neither finds the other's results; each reads
// the other's document and passes over what it does not know. A vertex is two
// records here:
//
//	definition  digest: definition key; inputs: the definitions it stands on
//	result      digest: result key; its one input: the keys that lead to it,
//	            marked by their selector; results: layers of output 0
//	(output n   a digest of its own; its one input: the result, marked "output n")
//
// An image that a build stands on has no result record: it is had from where it
// is, and its key follows from what it is.

// configType is the media type of the document.
const configType = "application/vnd.buildkit.cacheconfig.v0"

// inlineField is where an image's configuration has the records; the layers are
// the image's.
const inlineField = "moby.buildkit.cache.v0"

const (
	selectKey    = "dhow.key"     // marks the keys that lead to a result
	selectOutput = "dhow.output/" // followed by the number of an output
)

// Bounds of a document that somebody else wrote.
const (
	maxDocument = 64 << 20 // bytes
	maxRecords  = 1 << 20  // and layers, and layers of all results together
	maxOutputs  = 1 << 10
)

type configDoc struct {
	Layers  []configLayer  `json:"layers,omitempty"`
	Records []configRecord `json:"records,omitempty"`

	left int // layers of results that may yet be read
}

type configLayer struct {
	Blob   digest.Digest `json:"blob,omitempty"`
	Parent int           `json:"parent,omitempty"` // -1: none
}

type configRecord struct {
	Results []configResult  `json:"layers,omitempty"`
	Chains  []configChain   `json:"chains,omitempty"`
	Digest  digest.Digest   `json:"digest,omitempty"`
	Inputs  [][]configInput `json:"inputs,omitempty"`
}

type configResult struct {
	Layer   int        `json:"layer"`
	Created *time.Time `json:"createdAt,omitempty"`
}

type configChain struct {
	Layers  []int      `json:"layers"`
	Created *time.Time `json:"createdAt,omitempty"`
}

type configInput struct {
	Selector string `json:"selector,omitempty"`
	Link     int    `json:"link"`
}

// entry is a vertex in a cache.
type entry struct {
	definition string
	inputs     []entryInput
	key        string   // of the result; "": none is known
	links      []string // further keys that lead to the result
	outputs    []entryOutput
}

type entryInput struct {
	definition string
	reads      string
}

// entryOutput is where an output's layers are. have false: nowhere.
type entryOutput struct {
	have   bool
	layers []digest.Digest // blobs, bottom first
}

// encodeConfig makes the document. Equal entries make equal documents, in
// whatever order they come. createdAt, when not nil, tells a layer's time.
func encodeConfig(entries []entry, createdAt func(digest.Digest) time.Time) configDoc {
	e := &encoder{created: createdAt, records: map[string]*draft{}, layers: map[string]int{}}
	for _, en := range entries {
		e.add(en)
	}
	return e.finish()
}

type encoder struct {
	created func(digest.Digest) time.Time
	records map[string]*draft // by digest
	stacks  []configLayer     // as first met
	layers  map[string]int    // number in stacks, by the stack that it is the top of
}

// draft is a record whose links are names still.
type draft struct {
	configRecord
	inputs [][]draftInput
}

type draftInput struct{ selector, key string }

func (e *encoder) record(key string) *draft {
	r := e.records[key]
	if r == nil {
		r = &draft{configRecord: configRecord{Digest: digest.Digest(key)}}
		e.records[key] = r
	}
	return r
}

func (e *encoder) add(en entry) {
	def := e.record(en.definition)
	if def.inputs == nil {
		for _, in := range en.inputs {
			e.record(in.definition)
			def.inputs = append(def.inputs, []draftInput{{in.reads, in.definition}})
		}
	}
	if en.key == "" {
		return
	}
	result := e.record(en.key)
	for _, key := range append([]string{en.definition}, en.links...) {
		if key != en.key {
			e.link(result, selectKey, key)
		}
	}
	for i, out := range en.outputs {
		if !out.have {
			continue
		}
		rec := result
		if i > 0 {
			rec = e.record(outputDigest(en.key, i))
			e.link(rec, selectOutput+strconv.Itoa(i), en.key)
		}
		e.result(rec, out.layers)
	}
}

// outputDigest names the record of an output other than the first, as BuildKit
// does.
func outputDigest(key string, i int) string {
	return digest.FromString(key + "@" + strconv.Itoa(i)).String()
}

// link adds a record to those that may stand at a record's only input.
func (e *encoder) link(r *draft, selector, key string) {
	e.record(key)
	if r.inputs == nil {
		r.inputs = make([][]draftInput, 1)
	}
	if in := (draftInput{selector, key}); !slices.Contains(r.inputs[0], in) {
		r.inputs[0] = append(r.inputs[0], in)
	}
}

func (e *encoder) result(r *draft, blobs []digest.Digest) {
	if len(r.Results) > 0 || len(r.Chains) > 0 {
		return
	}
	if len(blobs) == 0 {
		r.Chains = []configChain{{Layers: []int{}}}
		return
	}
	res := configResult{Layer: e.stack(blobs)}
	if e.created != nil {
		at := e.created(blobs[len(blobs)-1]).UTC()
		res.Created = &at
	}
	r.Results = []configResult{res}
}

func (e *encoder) stack(blobs []digest.Digest) int {
	parent := -1
	id := ""
	for _, b := range blobs {
		id += " " + b.String()
		n, ok := e.layers[id]
		if !ok {
			n = len(e.stacks)
			e.layers[id] = n
			e.stacks = append(e.stacks, configLayer{Blob: b, Parent: parent})
		}
		parent = n
	}
	return parent
}

// finish sorts layers and records, and puts numbers in the places of names.
func (e *encoder) finish() configDoc {
	doc := configDoc{left: maxRecords}
	// By the blob, as BuildKit sorts; then by what it lies on.
	top := func(id string) string { return id[strings.LastIndexByte(id, ' '):] }
	order := slices.SortedFunc(maps.Keys(e.layers), func(a, b string) int { return cmp.Or(cmp.Compare(top(a), top(b)), cmp.Compare(a, b)) })
	place := make([]int, len(order)) // by the number in stacks
	for i, id := range order {
		place[e.layers[id]] = i
	}
	for _, id := range order {
		l := e.stacks[e.layers[id]]
		if l.Parent >= 0 {
			l.Parent = place[l.Parent]
		}
		doc.Layers = append(doc.Layers, l)
	}
	keys := slices.Sorted(maps.Keys(e.records))
	at := make(map[string]int, len(keys))
	for i, key := range keys {
		at[key] = i
	}
	for _, key := range keys {
		r := e.records[key]
		for i := range r.Results {
			r.Results[i].Layer = place[r.Results[i].Layer]
		}
		for _, choices := range r.inputs {
			var list []configInput
			for _, in := range choices {
				list = append(list, configInput{Selector: in.selector, Link: at[in.key]})
			}
			slices.SortFunc(list, func(a, b configInput) int { return cmp.Compare(a.Link, b.Link) })
			r.Inputs = append(r.Inputs, list)
		}
		doc.Records = append(doc.Records, r.configRecord)
	}
	return doc
}

// known are the results of a document, by every key that leads to them.
type known map[string]*entry

// decodeConfig reads a document that anybody may have written. What is not dhow's
// is passed over. ErrInvalid when it is no such document.
func decodeConfig(raw []byte) (known, error) {
	var doc configDoc
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, errdef.New(errdef.ErrInvalid, "decode cache: %w", err)
	}
	return doc.known()
}

func (doc *configDoc) known() (known, error) {
	if len(doc.Records) > maxRecords || len(doc.Layers) > maxRecords {
		return nil, errdef.New(errdef.ErrInvalid, "cache: got %d records and %d layers, want at most %d", len(doc.Records), len(doc.Layers), maxRecords)
	}
	all := known{}
	doc.left = maxRecords
	for i := range doc.Records {
		if doc.marked(i, selectKey) {
			if err := doc.addResult(all, i); err != nil {
				return nil, err
			}
		}
	}
	for i := range doc.Records {
		if err := doc.addOutput(all, i); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// marked says whether a record has one input, all of whose links have the
// selector.
func (doc *configDoc) marked(i int, prefix string) bool {
	r := doc.Records[i]
	if len(r.Inputs) != 1 || len(r.Inputs[0]) == 0 {
		return false
	}
	for _, in := range r.Inputs[0] {
		if !strings.HasPrefix(in.Selector, prefix) || in.Link < 0 || in.Link >= len(doc.Records) {
			return false
		}
	}
	return true
}

func (doc *configDoc) addResult(all known, i int) error {
	r := doc.Records[i]
	if r.Digest == "" {
		return nil
	}
	en := &entry{key: r.Digest.String(), outputs: make([]entryOutput, 1)}
	var err error
	if en.outputs[0], err = doc.output(r); err != nil {
		return err
	}
	all[en.key] = en
	for _, in := range r.Inputs[0] {
		key := doc.Records[in.Link].Digest.String()
		if key == "" {
			continue
		}
		if all[key] == nil || all[key].key != key {
			all[key] = en
		}
		en.links = append(en.links, key)
	}
	return nil
}

func (doc *configDoc) addOutput(all known, i int) error {
	if !doc.marked(i, selectOutput) {
		return nil
	}
	in := doc.Records[i].Inputs[0][0]
	n, err := strconv.Atoi(strings.TrimPrefix(in.Selector, selectOutput))
	en := all[doc.Records[in.Link].Digest.String()]
	if err != nil || n < 1 || n >= maxOutputs || en == nil {
		return nil
	}
	for len(en.outputs) <= n {
		en.outputs = append(en.outputs, entryOutput{})
	}
	en.outputs[n], err = doc.output(doc.Records[i])
	return err
}

// output reads the layers of a record's first result.
func (doc *configDoc) output(r configRecord) (entryOutput, error) {
	switch {
	case len(r.Results) > 0:
		return doc.stack(r.Results[0].Layer)
	case len(r.Chains) > 0:
		out := entryOutput{have: true}
		if doc.left -= len(r.Chains[0].Layers); doc.left < 0 {
			return out, errdef.New(errdef.ErrInvalid, "cache: the results have more than %d layers together", maxRecords)
		}
		for _, l := range r.Chains[0].Layers {
			if l < 0 || l >= len(doc.Layers) {
				return out, errdef.New(errdef.ErrInvalid, "cache: there is no layer %d", l)
			}
			out.layers = append(out.layers, doc.Layers[l].Blob)
		}
		return out, nil
	}
	return entryOutput{}, nil
}

// stack is a layer with all that it lies on.
func (doc *configDoc) stack(top int) (entryOutput, error) {
	out := entryOutput{have: true}
	for l := top; l != -1; l = doc.Layers[l].Parent {
		if l < 0 || l >= len(doc.Layers) {
			return out, errdef.New(errdef.ErrInvalid, "cache: there is no layer %d", l)
		}
		if len(out.layers) >= len(doc.Layers) {
			return out, errdef.New(errdef.ErrInvalid, "cache: layer %d lies on itself", top)
		}
		if doc.left--; doc.left < 0 {
			return out, errdef.New(errdef.ErrInvalid, "cache: the results have more than %d layers together", maxRecords)
		}
		out.layers = append(out.layers, doc.Layers[l].Blob)
	}
	slices.Reverse(out.layers)
	return out, nil
}
