package cis

// Sandboxes tells how instances can be isolated where they run.
type Sandboxes struct {
	// Region and Node name the place.
	Region string `json:"region,omitempty"`
	Node   string `json:"node,omitempty"`
	// Available is what can be asked for, strongest first; the first is what an instance gets that asks for none.
	Available []SandboxClass `json:"available"`
	// Unavailable says for each other class why it is not, and what would make it so.
	Unavailable map[SandboxClass]string `json:"unavailable"`
}
