package cis

// Sandboxes tells how instances can be isolated where they run, and how much there is room for.
type Sandboxes struct {
	// Region and Node name the place.
	Region string `json:"region,omitempty"`
	Node   string `json:"node,omitempty"`
	// Available is what can be asked for, strongest first; the first is what an instance gets that asks for none.
	Available []SandboxClass `json:"available"`
	// Unavailable says for each other class why it is not, and what would make it so.
	Unavailable map[SandboxClass]string `json:"unavailable"`
	// Capacity is what instances may hold there in all, live ones included.
	Capacity Capacity `json:"capacity"`
}

// Capacity is what a place can hold, by the instances' size classes. A zero field does not bound.
type Capacity struct {
	Instances int64 `json:"instances"`
	MilliCPU  int64 `json:"milliCPU"`
	MemoryMiB int64 `json:"memoryMiB"`
	// EphemeralDiskMiB is the size of the file system that instances' disks are on.
	EphemeralDiskMiB int64 `json:"ephemeralDiskMiB"`
}
