package mesh

// Head is what travels in front of an exchange whatever the protocol. All byte
// slices are views: they are valid until the buffer they were parsed from is
// read into again.
type Head struct {
	Method    []byte // request
	Scheme    []byte // request; "http" unless told otherwise
	Authority []byte // request: the Host field of HTTP/1, :authority of HTTP/2
	Path      []byte // request: origin form, or "*" with OPTIONS
	Status    int    // response: 100 to 599; 0 in a request
	// Fields in the order they came, without those that concern one connection
	// only and without Host.
	Fields []Field
}

// Field is one header or trailer field. Name is lower-case.
type Field struct {
	Name  []byte
	Value []byte
	Known Known
}

// Reset empties h and keeps the memory of Fields.
func (h *Head) Reset() {
	h.Method, h.Scheme, h.Authority, h.Path, h.Status = nil, nil, nil, nil, 0
	h.Fields = h.Fields[:0]
}

// Get returns the value of the first field with that well-known name, or nil.
func (h *Head) Get(k Known) []byte {
	for i := range h.Fields {
		if h.Fields[i].Known == k {
			return h.Fields[i].Value
		}
	}
	return nil
}
