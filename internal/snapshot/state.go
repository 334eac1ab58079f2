package snapshot

import (
	"time"

	"meshd/internal/mesh"
)

// Source is what CatalogService.Source says of everything that comes from a file.
const Source = "snapshot"

// State is what a host has been told by its registry.
type State struct {
	// Saved is when the file was written.
	Saved time.Time
	// Contact is when the registry last confirmed anything of it: what is
	// stale is so since then. Zero is unknown.
	Contact time.Time
	// Catalog holds the facts with the times at which each was last confirmed.
	// Load never returns nil, and only facts that have such a time.
	Catalog *mesh.Catalog
	// TrustDomain and Roots (DER) belong together.
	TrustDomain string
	Roots       [][]byte
	Leafs       []Leaf
}

// Leaf is the certificate of one service.
type Leaf struct {
	Service string
	Chain   [][]byte // DER, the leaf first
	// Key is the private key (PKCS #8). It is nil when keys are not kept, and
	// when the one in the file was sealed under another key.
	Key []byte
}

// Options say where the file is and how it is protected.
type Options struct {
	Path string
	// Key (32 bytes) seals private keys. With nil none is stored or read.
	Key []byte
}

// DamagedError says that there was a file and that nothing of it is believed.
type DamagedError struct {
	Reason string
	// Aside is where the file was moved, "" if it could not be: then the next
	// Save replaces it.
	Aside string
}

func (e *DamagedError) Error() string {
	if e.Aside == "" {
		return "snapshot is not usable and could not be set aside: " + e.Reason
	}
	return "snapshot is not usable and was set aside as " + e.Aside + ": " + e.Reason
}
