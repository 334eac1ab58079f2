package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"meshd/internal/admin"
)

// completeTimeout bounds how long the Tab key may hang.
const completeTimeout = time.Second

// completer is what cobra asks for words.
type completer = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective)

// completeConfig offers the files that may be a configuration.
func completeConfig(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"hcl", "json"}, cobra.ShellCompDirectiveFilterFileExt
}

// completeUpstream offers the upstreams of the running agent as the only
// argument.
func completeUpstream(client func() *admin.Client) completer {
	ask := completeFrom(client, func(st *admin.Status) (names []string) {
		for i := range st.Upstreams {
			u := &st.Upstreams[i]
			names = append(names, u.Name+"\t"+u.Protocol+" on "+u.Host)
		}
		return names
	})
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return ask(cmd, args, begun)
	}
}

// completeService offers the services of this host.
func completeService(client func() *admin.Client) completer {
	return completeFrom(client, func(st *admin.Status) (names []string) {
		for i := range st.Services {
			names = append(names, st.Services[i].Name)
		}
		return names
	})
}

// completeCaller offers the names that some allow block of this host knows.
func completeCaller(client func() *admin.Client) completer {
	return completeFrom(client, func(st *admin.Status) (names []string) {
		for i := range st.Services {
			names = append(names, st.Services[i].Allow...)
		}
		return names
	})
}

// completeFrom offers words out of the agent's status. Without an agent there
// are none, and not a word about it: the cursor is in the middle of a line.
func completeFrom(client func() *admin.Client, names func(*admin.Status) []string) completer {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		st, err := client().Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list := names(&st)
		slices.Sort(list)
		return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
	}
}
