package awslogs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	signer "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"dhow/internal/logs/driver"
)

const (
	service   = "logs"
	apiPrefix = "Logs_20140328."
	// taskHost serves credentials to tasks of ECS.
	taskHost = "http://169.254.170.2"
)

// client calls actions of the API.
type client struct {
	http        *driver.HTTP
	endpoint    string // "" until the region is known
	region      string
	credentials aws.CredentialsProvider
	signer      *signer.Signer
	emf         bool
}

func checkEndpoint(v string) error {
	u, err := url.Parse(v)
	if err != nil {
		return err
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("want https://host")
	}
	return nil
}

func newClient(o driver.Options) (*client, error) {
	c := &client{
		http:     driver.NewHTTP(nil, 0),
		endpoint: strings.TrimSuffix(o["awslogs-endpoint"], "/"),
		region:   o.Or("awslogs-region", firstEnv("AWS_REGION", "AWS_DEFAULT_REGION")),
		signer:   signer.NewSigner(),
		emf:      o["awslogs-format"] == "json/emf",
	}
	provider, err := provider(o["awslogs-credentials-endpoint"])
	if err != nil {
		return nil, err
	}
	c.credentials = aws.NewCredentialsCache(provider)
	return c, nil
}

func firstEnv(names ...string) string {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

// provider decides where credentials come from, in the order of the SDK's default
// chain as far as it needs no other service: the option, environment, shared
// credentials file, task, instance.
func provider(endpoint string) (aws.CredentialsProvider, error) {
	if endpoint != "" {
		return endpointcreds.New(taskHost + "/" + strings.TrimPrefix(endpoint, "/")), nil
	}
	if id, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"); id != "" && secret != "" {
		return static(id, secret, os.Getenv("AWS_SESSION_TOKEN")), nil
	}
	if p, err := sharedFile(); p != nil || err != nil {
		return p, err
	}
	if path := os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); path != "" {
		return endpointcreds.New(taskHost + path), nil
	}
	if full := os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"); full != "" {
		return endpointcreds.New(full, func(o *endpointcreds.Options) {
			o.AuthorizationToken = os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
		}), nil
	}
	return ec2rolecreds.New(), nil
}

func static(id, secret, token string) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: id, SecretAccessKey: secret, SessionToken: token}, nil
	})
}

// sharedFile reads the profile's keys from the shared credentials file
// (https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html); nil when
// there are none.
func sharedFile() (aws.CredentialsProvider, error) {
	path := os.Getenv("AWS_SHARED_CREDENTIALS_FILE")
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil
		}
		path = filepath.Join(home, ".aws", "credentials")
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys := profile(data, driver.Options{"p": os.Getenv("AWS_PROFILE")}.Or("p", "default"))
	id, secret := keys["aws_access_key_id"], keys["aws_secret_access_key"]
	if id == "" || secret == "" {
		return nil, nil
	}
	return static(id, secret, keys["aws_session_token"]), nil
}

// profile returns the keys of one section.
func profile(data []byte, name string) map[string]string {
	keys := map[string]string{}
	inside := false
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if section, ok := strings.CutPrefix(line, "["); ok {
			inside = strings.TrimSpace(strings.TrimSuffix(section, "]")) == name
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if inside && ok && !strings.HasPrefix(line, "#") {
			keys[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return keys
}

// locate finds out the region and with it the endpoint.
func (c *client) locate(ctx context.Context) error {
	if c.region == "" {
		out, err := imds.New(imds.Options{}).GetRegion(ctx, nil)
		if err != nil {
			return fmt.Errorf("awslogs-region is not set, and the instance does not tell it: %w", err)
		}
		c.region = out.Region
	}
	if c.endpoint == "" {
		domain := "amazonaws.com"
		if strings.HasPrefix(c.region, "cn-") {
			domain += ".cn"
		}
		c.endpoint = "https://logs." + c.region + "." + domain
	}
	return nil
}

// apiFault is an error that the API answered.
type apiFault struct{ kind, message string }

func (f *apiFault) Error() string { return f.kind + ": " + f.message }

func isFault(err error, kind string) bool {
	var f *apiFault
	return errors.As(err, &f) && f.kind == kind
}

// call carries out one action. out may be nil.
func (c *client) call(ctx context.Context, action string, in, out any) error {
	if err := c.locate(ctx); err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint+"/", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", apiPrefix+action)
	if c.emf && action == "PutLogEvents" {
		req.Header.Set("x-amzn-logs-format", "json/emf")
	}
	credentials, err := c.credentials.Retrieve(ctx)
	if err != nil {
		return fmt.Errorf("no AWS credentials: %w", err)
	}
	sum := sha256.Sum256(body)
	if err := c.signer.SignHTTP(ctx, credentials, req, hex.EncodeToString(sum[:]), service, c.region, time.Now()); err != nil {
		return err
	}
	answer, err := c.http.Do(req)
	if err != nil {
		return c.verdict(fmt.Errorf("%s: %w", action, asFault(answer, err)))
	}
	if out == nil || len(answer) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: %w", action, err)
	}
	return nil
}

// asFault reads the kind of an error from the body of the answer.
func asFault(answer []byte, err error) error {
	var body struct {
		Type    string `json:"__type"`
		Message string `json:"message"`
	}
	if json.Unmarshal(answer, &body) != nil || body.Type == "" {
		return err
	}
	if _, after, ok := strings.Cut(body.Type, "#"); ok {
		body.Type = after
	}
	return &apiFault{body.Type, body.Message}
}

// verdict says which faults will go away.
func (c *client) verdict(err error) error {
	var f *apiFault
	if !errors.As(err, &f) {
		return err
	}
	switch f.kind {
	case "InvalidParameterException", "InvalidSequenceTokenException":
		return driver.Reject(err)
	case "AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "ResourceNotFoundException",
		"InvalidClientTokenId", "OptInRequired", "MissingAuthenticationTokenException":
		return driver.Refuse(err)
	case "ExpiredTokenException":
		if cache, ok := c.credentials.(*aws.CredentialsCache); ok {
			cache.Invalidate()
		}
	}
	return err
}

func (c *client) Close() error { return c.http.Close() }
