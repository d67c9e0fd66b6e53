// Revocation asks an OCSP responder as programs written in Go do, with golang.org/x/crypto/ocsp.
//
// Usage: revocation CA CERTIFICATE CERTIFICATE ...
//
// The responder is the one that each certificate names. It is asked with every hash for the CertID that the package
// can make, by POST and by both spellings of GET, and a line is printed for each: the certificate's file name, the
// hash, the way, and the status with the revocation reason, or what was wrong. Fields are separated by tabs.
package main

import (
	"bytes"
	"crypto"
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"
)

var statuses = map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}

func main() {
	issuer := read(os.Args[1])
	for _, file := range os.Args[2:] {
		certificate := read(file)
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			for _, way := range []string{"POST", "GET", "GET unescaped"} {
				verdict, err := ask(certificate, issuer, hash, way)
				if err != nil {
					verdict = "error: " + err.Error()
				}
				fmt.Printf("%s\t%s\t%s\t%s\n", filepath.Base(file), hash, way, verdict)
			}
		}
	}
}

func ask(certificate, issuer *x509.Certificate, hash crypto.Hash, way string) (string, error) {
	request, err := ocsp.CreateRequest(certificate, issuer, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		return "", err
	}
	reply, err := send(certificate.OCSPServer[0], request, way)
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err != nil {
		return "", err
	}
	response, err := ocsp.ParseResponseForCert(body, certificate, issuer)
	if err != nil {
		return "", err
	}
	now := time.Now()
	if response.ThisUpdate.After(now) || response.NextUpdate.Before(now) {
		return "", fmt.Errorf("not of today: %v to %v", response.ThisUpdate, response.NextUpdate)
	}
	if response.IssuerHash != hash {
		return "", fmt.Errorf("asked by %v, answered by %v", hash, response.IssuerHash)
	}
	if response.Status == ocsp.Revoked {
		return fmt.Sprintf("revoked %d", response.RevocationReason), nil
	}
	return statuses[response.Status], nil
}

func send(server string, request []byte, way string) (*http.Response, error) {
	if way == "POST" {
		return http.Post(server, "application/ocsp-request", bytes.NewReader(request))
	}
	encoded := base64.StdEncoding.EncodeToString(request)
	if way == "GET" {
		encoded = url.QueryEscape(encoded)
	}
	return http.Get(strings.TrimSuffix(server, "/") + "/" + encoded)
}

func read(file string) *x509.Certificate {
	text, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		panic(file + " is no PEM file")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		panic(err)
	}
	return certificate
}
