package config

import "errors"

// Load reads the file at path (or meshd.hcl in the folder at path), then the
// files conf.d/*.hcl beside it in the order of their names. The error is a
// *[Diagnostics].
func Load(path string) (*Config, error) { return nil, errors.New("soon") }

// Parse is [Load] for text that is already in memory: name to content. Files of
// the top come before those in folders, then by name. Nothing is read from
// disk. The error is a *[Diagnostics].
func Parse(files map[string][]byte) (*Config, error) { return nil, errors.New("soon") }
