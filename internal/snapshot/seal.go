package snapshot

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
)

// KeyBytes is the length of the key that seals private keys: AES-256.
const KeyBytes = 32

// sealContext ties what is sealed to its use; the service's name follows it, so
// that the key of one service cannot be given to another.
const sealContext = "meshd snapshot leaf key "

// gcm draws a nonce for each message. One key is good for 2³² of them (NIST SP
// 800-38D, section 8.3): ten leafs saved every 5 s take some 68 years.
func gcm(key []byte) (cipher.AEAD, error) {
	if len(key) != KeyBytes {
		return nil, fmt.Errorf("the key that seals has %d bytes, want %d", len(key), KeyBytes)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func seal(key []byte, service string, private []byte) ([]byte, error) {
	a, err := gcm(key)
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, private, []byte(sealContext+service)), nil
}

// unseal returns nil for what was not sealed with this key for this service.
func unseal(key []byte, service string, sealed []byte) []byte {
	if key == nil || sealed == nil {
		return nil
	}
	a, err := gcm(key)
	if err != nil {
		return nil
	}
	private, err := a.Open(nil, nil, sealed, []byte(sealContext+service))
	if err != nil {
		return nil
	}
	return private
}
