package mesh

import "testing"

// A name that LookupKnown does not find again would travel between agents as
// one field and be treated as another.
func TestKnownNamesRoundTrip(t *testing.T) {
	for k := OtherField + 1; k < KnownCount; k++ {
		if k.String() == "" {
			t.Errorf("known name %d has no text", k)
		}
		if got := LookupKnown(k.Bytes()); got != k {
			t.Errorf("LookupKnown(%q) = %d, want %d", k, got, k)
		}
	}
	if got := LookupKnown([]byte("x-other")); got != OtherField {
		t.Errorf("LookupKnown(x-other) = %d, want OtherField", got)
	}
}
