package snapshot

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// What the manual says in numbers is what the code does.
func TestDocument(t *testing.T) {
	b, err := os.ReadFile("../../docs/snapshot.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(b)), " ")
	for _, fact := range []string{
		fmt.Sprintf("`VERSION` is %d.", version),
		fmt.Sprintf("larger than %d MiB", MaxBytes>>20),
		fmt.Sprintf("`snapshot%s1` (those before become `-2` and `-%d`", damagedSuffix, keepDamaged),
		fmt.Sprintf("The key that seals them is %d bytes long", KeyBytes),
		magic + " VERSION LENGTH SHA256",
	} {
		if !strings.Contains(text, fact) {
			t.Errorf("the document does not say: %s", fact)
		}
	}
}
