// Package e2e tells whole stories: several agents as real processes, with real
// applications beside them and, where the story says so, a real Consul. Each
// test is one story; its log prints the figure that matters.
//
// It holds tests only and is imported by nobody. What one room does alone is
// tested in that room; here is what only the parts together can get wrong. The
// binaries are built once per run, with the race detector if the tests have
// it: an agent that finds a race ends with an exit code that no story expects.
package e2e
