package proxy

import "meshd/internal/mesh"

// What meshd says of a caller must be believed by the application, so whatever
// else claims to say it is removed: the names below with any mixture of "-" and
// "_", since many applications fold the two.

// trusted replaces what the request says of its origin by what the link knows.
func (w *worker) trusted(l *link, h *mesh.Head) {
	kept := h.Fields[:0]
	for i := range h.Fields {
		f := &h.Fields[i]
		switch f.Known {
		case mesh.XForwardedFor, mesh.XForwardedClientCert, mesh.XForwardedProto, mesh.XForwardedHost, mesh.Forwarded,
			mesh.MeshdError:
			continue
		case mesh.OtherField:
			if claims(f.Name) {
				continue
			}
		}
		kept = append(kept, *f)
	}
	h.Fields = append(kept,
		mesh.Field{Name: mesh.XForwardedFor.Bytes(), Value: l.xff, Known: mesh.XForwardedFor},
		mesh.Field{Name: mesh.XForwardedProto.Bytes(), Value: schemeHTTP, Known: mesh.XForwardedProto},
		mesh.Field{Name: mesh.XForwardedClientCert.Bytes(), Value: l.xfcc, Known: mesh.XForwardedClientCert})
}

// claims tells whether an application that folds "_" to "-" could take the
// name for one that only meshd writes.
func claims(name []byte) bool {
	folded := false
	for _, c := range name {
		if c == '_' {
			folded = true
			break
		}
	}
	if !folded || len(name) > maxClaim {
		return false
	}
	var b [maxClaim]byte
	n := copy(b[:], name)
	for i := range b[:n] {
		if b[i] == '_' {
			b[i] = '-'
		}
	}
	switch mesh.LookupKnown(b[:n]) {
	case mesh.XForwardedFor, mesh.XForwardedClientCert, mesh.XForwardedProto, mesh.XForwardedHost, mesh.MeshdError:
		return true
	}
	return false
}

// maxClaim is the longest name that claims has to look at.
const maxClaim = len("x-forwarded-client-cert")

// stripMesh removes what only meshd may say in a response.
func stripMesh(h *mesh.Head) {
	for i := range h.Fields {
		if h.Fields[i].Known == mesh.MeshdError {
			kept := h.Fields[:i]
			for _, f := range h.Fields[i+1:] {
				if f.Known != mesh.MeshdError {
					kept = append(kept, f)
				}
			}
			h.Fields = kept
			return
		}
	}
}
