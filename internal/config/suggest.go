package config

import "strings"

// didYouMean returns ` Did you mean "x"?` for the candidate that given was
// probably meant to be, or "".
func didYouMean(given string, candidates []string) string {
	if s := suggest(given, candidates, maxTypos); s != "" {
		return " Did you mean \"" + s + "\"?"
	}
	return ""
}

const (
	// maxTypos is how many letters may be wrong in a word that is still
	// recognised, fewer in short ones.
	maxTypos = 2
	// longestWord bounds the work, which is quadratic; no name is longer.
	longestWord = 64
)

// suggest returns the candidate nearest to given, or "" when more than typos
// letters are wrong in all. Other habits of writing (camelCase, dashes) are no
// distance at all.
func suggest(given string, candidates []string, typos int) string {
	if len(given) > longestWord {
		return ""
	}
	plain := strings.NewReplacer("_", "", "-", "").Replace
	const shortest = 3 // of a beginning that says something
	best, bestDistance, longer := "", 1+max(1, min(typos, len(given)/3)), ""
	for _, c := range candidates {
		if c == given {
			continue
		}
		if strings.EqualFold(plain(c), plain(given)) {
			return c
		}
		if d := distance(given, c); d < bestDistance {
			best, bestDistance = c, d
		}
		if min(len(c), len(given)) >= shortest && longer == "" && (strings.HasPrefix(c, given) || strings.HasPrefix(given, c)) {
			longer = c
		}
	}
	if best == "" {
		return longer // "warning" for "warn"
	}
	return best
}

// distance counts the letters to insert, drop, replace or swap with a
// neighbour to get from a to b (optimal string alignment).
func distance(a, b string) int {
	two, one, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range one {
		one[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(one[j]+1, row[j-1]+1, one[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], two[j-2]+1)
			}
		}
		two, one, row = one, row, two
	}
	return one[len(b)]
}
