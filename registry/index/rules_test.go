package index

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"cumulet.io/internal/problem"
)

func testRetention(t *testing.T, s *Store, c *clock) {
	ctx := t.Context()
	const name = "keep/app"
	rules := &Rules{ImmutableTags: []string{"v*"}, Keep: []Keep{{Tags: "dev-*", Last: 2}, {Tags: "v*", Last: 1}}, UntaggedAfter: Age(24 * time.Hour)}
	if err := s.SetRules(ctx, name, "adam", rules); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		put(t, s, image(name, fmt.Sprint("k", i)), fmt.Sprint("dev-", i))
	}
	put(t, s, image(name, "k0"), "v1")
	put(t, s, image(name, "k1"), "v2")
	_, err := s.Put(ctx, PutRequest{Manifest: image(name, "k2"), Tag: "v1", Cause: CausePush})
	wantClass(t, "an immutable tag is moved", err, problem.ErrForbidden)
	if out := put(t, s, image(name, "k0"), "v1"); out.Moved {
		t.Errorf("the same again: %+v", out)
	}
	_, err = s.DeleteTag(ctx, name, "v1", "adam", CauseDelete, nil)
	wantClass(t, "an immutable tag is deleted", err, problem.ErrForbidden)
	_, _, err = s.Delete(ctx, name, digest.FromString("k0"), "adam", CauseDelete, nil)
	wantClass(t, "the manifest of an immutable tag is deleted", err, problem.ErrForbidden)

	// An index keeps its children, an image its referrers.
	child, list := image(name, "child"), image(name, "list", Blob{Digest: digest.FromString("child"), Kind: KindManifest, Size: 100})
	put(t, s, child, "")
	put(t, s, list, "multi")
	sbom := image(name, "k-sbom")
	sbom.Subject = list.Digest
	put(t, s, sbom, "")
	put(t, s, image(name, "loose"), "")
	pulled := image(name, "pulled")
	put(t, s, pulled, "")
	c.advance(25 * time.Hour)
	if err := s.Pulled(ctx, []Pull{{Repository: name, Digest: pulled.Digest, Last: c.now(), Count: 3}}); err != nil {
		t.Fatal(err)
	}
	plan, err := s.Plan(ctx, name)
	var got []string
	for _, r := range must(t, plan, err) {
		got = append(got, r.Tag+"@"+short(r.Digest))
	}
	hex := func(text string) string { return short(digest.FromString(text)) }
	want := fmt.Sprintf("[dev-0@%s dev-1@%s @%s]", hex("k0"), hex("k1"), hex("loose"))
	if fmt.Sprint(got) != want {
		t.Errorf("plan = %v, want %s", got, want)
	}
	if names, err := s.WithRetention(ctx); err != nil || len(names) != 1 {
		t.Errorf("with retention: %v, %v", names, err)
	}
	if m, err := s.Manifest(ctx, name, pulled.Digest); err != nil || m.Pulls != 3 || m.Pulled.IsZero() {
		t.Errorf("pulled: %+v, %v", m, err)
	}
	back, err := s.Rules(ctx, name)
	text, merr := json.Marshal(must(t, back, err))
	if merr != nil || string(text) != `{"immutableTags":["v*"],"keep":[{"tags":"dev-*","last":2},{"tags":"v*","last":1}],"untaggedAfter":"1d"}` {
		t.Errorf("rules = %s, %v", text, merr)
	}

	// What somebody pushes between the plan and the removal stays.
	put(t, s, image(name, "k0"), "dev-0")
	_, err = s.DeleteTag(ctx, name, "dev-0", "adam", CauseRetention, &plan[0])
	wantClass(t, "a tag that was pushed again", err, problem.ErrNotFound)
	put(t, s, image(name, "loose"), "tied")
	_, _, err = s.Delete(ctx, name, plan[2].Digest, "adam", CauseRetention, &plan[2])
	wantClass(t, "a manifest that has a tag by now", err, problem.ErrNotFound)
	for _, tag := range []string{"dev-0", "tied"} {
		if _, err := s.Lookup(ctx, name, tag); err != nil {
			t.Errorf("%s: %v", tag, err)
		}
	}
	if _, err := s.DeleteTag(ctx, name, "dev-1", "adam", CauseRetention, &plan[1]); err != nil {
		t.Errorf("a tag that is still due: %v", err)
	}
	put(t, s, image(name, "free"), "")
	c.advance(25 * time.Hour)
	plan, err = s.Plan(ctx, name)
	i := slices.IndexFunc(must(t, plan, err), func(r Removal) bool { return r.Digest == digest.FromString("free") })
	if i < 0 {
		t.Fatalf("an untagged manifest is not in %v", plan)
	}
	if _, _, err := s.Delete(ctx, name, plan[i].Digest, "adam", CauseRetention, &plan[i]); err != nil {
		t.Errorf("a manifest that is still due: %v", err)
	}
}

func TestEvaluate(t *testing.T) {
	now := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	day := func(n int) time.Time { return now.Add(-time.Duration(n) * 24 * time.Hour) }
	tags := []Tag{{Name: "dev-1", Pushed: day(40)}, {Name: "dev-2", Pushed: day(30), Pulled: day(1)}, {Name: "dev-3", Pushed: day(20)},
		{Name: "dev-4", Pushed: day(1)}, {Name: "latest", Pushed: day(90)}, {Name: "v1", Pushed: day(90)}}
	for _, tc := range []struct{ rules, want string }{
		{`{}`, ""},
		{`{"keep":[{"tags":"dev-*","last":1}]}`, "dev-1 dev-2 dev-3"},
		{`{"keep":[{"tags":"dev-*","last":9}]}`, ""},
		{`{"keep":[{"tags":"dev-*","last":1,"pulledWithin":"7d"}]}`, "dev-1 dev-3"},
		{`{"keep":[{"tags":"dev-*","pushedWithin":"25d"}]}`, "dev-1 dev-2"},
		{`{"keep":[{"tags":"dev-*","pushedWithin":"12h"},{"tags":"*-2","last":1}]}`, "dev-1 dev-3 dev-4"},
		{`{"keep":[{"tags":"*","last":1}]}`, "dev-1 dev-2 dev-3 latest v1"},
		{`{"keep":[{"tags":"*","last":1}],"immutableTags":["v*"]}`, "dev-1 dev-2 dev-3 latest"},
		{`{"keep":[{"tags":"[lv]*","last":1}]}`, "v1"},
	} {
		var r Rules
		if err := json.Unmarshal([]byte(tc.rules), &r); err != nil {
			t.Fatal(err)
		}
		if err := r.Validate(); err != nil {
			t.Errorf("%s: %v", tc.rules, err)
		}
		var got []string
		for _, x := range r.Evaluate(tags, now) {
			got = append(got, x.Tag)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %v, want %s", tc.rules, got, tc.want)
		}
	}
	for _, bad := range []string{`{"keep":[{"tags":"dev-*"}]}`, `{"keep":[{"tags":"[","last":1}]}`, `{"keep":[{"tags":"","last":1}]}`,
		`{"keep":[{"tags":"a","last":-1}]}`, `{"immutableTags":["a/b"]}`, `{"immutableTags":[` + strings.Repeat(`"a",`, 64) + `"a"]}`} {
		var r Rules
		if err := json.Unmarshal([]byte(bad), &r); err != nil {
			t.Fatal(err)
		}
		wantClass(t, bad, r.Validate(), problem.ErrInvalid)
	}
	for _, bad := range []string{`{"untaggedAfter":"soon"}`, `{"untaggedAfter":"-1h"}`, `{"untaggedAfter":"99999999d"}`, `{"untaggedAfter":5}`} {
		if err := json.Unmarshal([]byte(bad), &Rules{}); err == nil {
			t.Errorf("%s: accepted", bad)
		}
	}
}

func TestParse(t *testing.T) {
	d := func(text string) string { return string(digest.FromString(text)) }
	good := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":3},"layers":[{"mediaType":"x","digest":%q,"size":4},
		{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","urls":["https://x"],"digest":%q,"size":5}],"subject":{"digest":%q,"size":1,"mediaType":"y"},"annotations":{"k":"v"}}`,
		v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, d("c"), d("l"), d("f"), d("s"))
	m, err := Parse(v1.MediaTypeImageManifest+"; charset=utf-8", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	config, ok := m.ConfigOf()
	if m.MediaType != v1.MediaTypeImageManifest || m.ArtifactType != v1.MediaTypeImageConfig || string(m.Subject) != d("s") || len(m.Blobs) != 3 ||
		m.Blobs[2].Kind != KindForeign || !ok || string(config) != d("c") || m.Size != int64(len(good)) || m.Digest != digest.FromString(good) {
		t.Errorf("%+v", m)
	}
	m.AddConfig([]byte(`{"os":"linux","architecture":"arm64","variant":"v8","created":"2026-01-02T03:04:05Z","config":{"Labels":{"a":"b"}}}`))
	if m.Platform != "linux/arm64/v8" || m.Created.Year() != 2026 || m.Labels["a"] != "b" {
		t.Errorf("config: %+v", m)
	}
	for name, bad := range map[string]string{
		"no JSON": "x", "old": `{"schemaVersion":1}`, "other type": `{"schemaVersion":2,"mediaType":"text/plain"}`, "bad config": `{"schemaVersion":2,"config":{"digest":"sha256:x"}}`, "bad layer": `{"schemaVersion":2,"layers":[{}]}`,
		"bad subject": `{"schemaVersion":2,"subject":{"digest":"md5:x"}}`, "negative": fmt.Sprintf(`{"schemaVersion":2,"layers":[{"digest":%q,"size":-1}]}`, d("l")),
		"nested": `{"schemaVersion":2,"annotations":{"k":{}}}`,
	} {
		_, err := Parse(v1.MediaTypeImageManifest, []byte(bad))
		wantClass(t, name, err, problem.ErrInvalid)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(v1.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{"digest":"sha256:`+strings.Repeat("0", 64)+`","size":1},"annotations":{"a":"b"}}`))
	f.Add(v1.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha512:`+strings.Repeat("0", 128)+`"}],"artifactType":"a\u0000b"}`))
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		m, err := Parse(mediaType, body)
		if err != nil {
			return
		}
		m.AddConfig(body)
		for _, b := range m.Blobs {
			if b.Digest.Validate() != nil || b.Size < 0 {
				t.Fatalf("%+v", b)
			}
		}
		for _, x := range append(m.Facts(), Fact{Value: m.ArtifactType}, Fact{Value: m.Platform}) {
			if len(x.Name) > maxFactName || len(x.Value) > maxFactValue || strings.ContainsRune(x.Name+x.Value, 0) {
				t.Fatalf("%+v", x)
			}
		}
		if m.Subject != "" && m.Subject.Validate() != nil {
			t.Fatalf("%+v", m)
		}
	})
}
