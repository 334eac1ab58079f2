package snapshot

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	magic = "meshd-snapshot"
	// version counts the formats. Every change of the payload, however small,
	// makes another one: a reader knows all of a file or nothing.
	version = 1
	// MaxBytes bounds a file: 500 services of 1,000 endpoints, with room.
	MaxBytes = 64 << 20
	// maxHeader is what the first line may take, in any version to come.
	maxHeader = 256
)

// Encode returns the content of a file. Private keys are sealed with key, or
// left out if it is nil. It fails for what Decode would not believe.
func Encode(s State, key []byte) ([]byte, error) {
	p, err := toPayload(s, key)
	if err != nil {
		return nil, err
	}
	body, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	b := append(header(body), body...)
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("%d bytes, more than %d", len(b), MaxBytes)
	}
	return b, nil
}

// Decode reads the content of a file. The error says why nothing of it is
// believed. A private key that was sealed under another key is no error: its
// leaf has none then.
func Decode(b, key []byte) (State, error) {
	if len(b) > MaxBytes {
		return State{}, fmt.Errorf("%d bytes, more than %d", len(b), MaxBytes)
	}
	body, err := open(b)
	if err != nil {
		return State{}, err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var p payload
	if err := d.Decode(&p); err != nil {
		return State{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return State{}, errors.New("something follows the end")
	}
	return p.state(key)
}

// header returns the first line: magic, version, length of the body, SHA-256
// over that much of the line and the body.
//
//	meshd-snapshot 1 5120 9f86d081884c7d65…\n
func header(body []byte) []byte {
	line := magic + " " + strconv.Itoa(version) + " " + strconv.Itoa(len(body))
	h := sha256.New()
	io.WriteString(h, line+"\n")
	h.Write(body)
	return []byte(line + " " + hex.EncodeToString(h.Sum(nil)) + "\n")
}

// open checks the first line against the rest and returns the rest.
func open(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("it is empty")
	}
	end := bytes.IndexByte(b[:min(len(b), maxHeader)], '\n')
	if end < 0 {
		return nil, errors.New("it has no first line")
	}
	// Version first: what follows it may mean something else in another one.
	words := strings.SplitN(string(b[:end]), " ", 3)
	if words[0] != magic || len(words) < 3 {
		return nil, errors.New("it does not begin as a snapshot of meshd does")
	}
	if words[1] != strconv.Itoa(version) {
		return nil, fmt.Errorf("its format is version %.20q, this meshd knows version %d", words[1], version)
	}
	body := b[end+1:]
	// The line is remade and compared, so there is one spelling of each.
	if subtle.ConstantTimeCompare(b[:end+1], header(body)) != 1 {
		return nil, errors.New("length or checksum do not agree with the content")
	}
	return body, nil
}
