// Command meshd is the agent of a host: it carries the requests of local
// applications to other hosts over mutual TLS, and those of other hosts to
// local applications.
//
// This is a thin door: flags, signals, the log and the exit code. What meshd
// does is in internal/agent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"meshd/internal/agent"
	"meshd/internal/config"
)

// Exit codes. 78 is EX_CONFIG of sysexits.h: the unit lists it in
// RestartPreventExitStatus, since starting again would not help.
const (
	exitOK     = 0 // drained
	exitFailed = 1
	exitUsage  = 2
	exitConfig = 78
)

const defaultConfig = "/etc/meshd/meshd.hcl"

// version is the release, set by the linker.
var version string

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is meshd without the process around it.
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("meshd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", defaultConfig, "configuration `file`, or a folder with "+config.MainFile)
	level := flags.String("log-level", "", "trace, debug, info, warn or error; wins over agent { log_level }")
	showVersion := flags.Bool("version", false, "print the version and exit")
	flags.Usage = func() {
		fmt.Fprintf(stderr, "Usage: meshd [flags]\n\n")
		flags.PrintDefaults()
		fmt.Fprintf(stderr, "\nSIGTERM and SIGINT drain and end, SIGHUP reloads. Exit codes: 0 drained,\n"+
			"1 failed, 2 wrong usage, 78 bad configuration.\n")
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "meshd: unexpected argument %q; the configuration is given by -config\n", flags.Arg(0))
		return exitUsage
	}
	if *showVersion {
		printVersion(stdout)
		return exitOK
	}
	if !validLevel(*level) {
		fmt.Fprintf(stderr, "meshd: -log-level is trace, debug, info, warn or error, not %q\n", *level)
		return exitUsage
	}

	// A SIGHUP before the agent is there must not end the process, which is
	// what it does to one that did not ask for it: it is kept until then.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)

	cfg, err := config.Load(*path)
	if err != nil {
		return failed(err, stderr)
	}
	lv := new(slog.LevelVar)
	o := agent.Options{Config: cfg, ConfigPath: *path, Level: lv, Version: version}
	if *level != "" {
		lv.Set(agent.ParseLevel(*level))
		o.Level = nil // the agent leaves it alone
	}
	// Text for a terminal and JSON elsewhere, unless the configuration says.
	text := cfg.Agent.LogFormat == "text" || cfg.Agent.LogFormat == "" && terminal(stderr)
	log := newLines(stderr, func(n int) { o.Log.Error("log lines were lost: whoever reads the log did not keep up", "lines", n) })
	o.Log = newLog(log, text, lv)
	// Who turned the access log on wants it at any log_level.
	o.AccessLog = newLog(log, text, slog.LevelInfo)
	a, err := agent.New(o)
	if err == nil {
		err = serve(a, hangups, o.Log)
	}
	log.Close() // what it has comes before what is written below
	if err != nil {
		return failed(err, stderr)
	}
	return exitOK
}

// serve runs the agent until a signal ends it, and reloads at each hangup.
func serve(a *agent.Agent, hangups <-chan os.Signal, log *slog.Logger) error {
	// A second SIGTERM or Ctrl-C kills: the first puts the signals back.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	reloaded := make(chan struct{}) // closed by the goroutine that reloads; serve waits for it
	go func() {
		defer close(reloaded)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				log.Info("reload asked for by SIGHUP")
				if _, err := a.Reload(ctx); err != nil { // a bad configuration is logged by the agent
					log.Error("reload failed", "error", err)
				}
			}
		}
	}()
	err := a.Run(ctx)
	stop()
	<-reloaded
	return err
}

// failed tells why meshd did not start or broke off, and how to exit.
func failed(err error, stderr io.Writer) int {
	var d *config.Diagnostics
	if errors.As(err, &d) {
		const unwrapped = 0 // a journal wraps by itself
		d.Write(stderr, unwrapped, false)
		return exitConfig
	}
	fmt.Fprintf(stderr, "meshd: %v\n", err)
	return exitFailed
}

func printVersion(w io.Writer) {
	v := agent.BuildVersion(version)
	fmt.Fprintf(w, "meshd %s", v.Version)
	if v.Revision != "" {
		fmt.Fprintf(w, " (%s, %s)", v.Revision, v.Built)
	}
	fmt.Fprintf(w, "\n%s, link protocol %s\n", v.Go, v.Protocol)
}

func validLevel(word string) bool {
	switch word {
	case "", "trace", "debug", "info", "warn", "error":
		return true
	}
	return false
}

// newLog writes text or JSON.
func newLog(w io.Writer, text bool, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.LevelKey && a.Value.Any() == agent.LevelTrace {
			a.Value = slog.StringValue("TRACE")
		}
		return a
	}}
	if text {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
