package consul

// Policy returns the text of the ACL policy (HCL) that lets meshd on the given
// node do what is wanted, and nothing else. Services with a token file of their
// own have a section of their own, headed by a comment that names the file: a
// policy for each of those tokens. The text ends with a newline.
func Policy(w Wanted, node string) string {
	return ""
}
