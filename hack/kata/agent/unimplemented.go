package agent

import (
	"context"

	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// unimplemented answers the requests that the agent does not serve.
type unimplemented struct{}

func no(name string) error {
	return status.Errorf(codes.Unimplemented, "this agent does not serve %s", name)
}

func (unimplemented) UpdateEphemeralMounts(context.Context, *pb.UpdateEphemeralMountsRequest) (*emptypb.Empty, error) {
	return nil, no("UpdateEphemeralMounts")
}

func (unimplemented) AddARPNeighbors(context.Context, *pb.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	return nil, no("AddARPNeighbors")
}

func (unimplemented) GetIPTables(context.Context, *pb.GetIPTablesRequest) (*pb.GetIPTablesResponse, error) {
	return nil, no("GetIPTables")
}

func (unimplemented) SetIPTables(context.Context, *pb.SetIPTablesRequest) (*pb.SetIPTablesResponse, error) {
	return nil, no("SetIPTables")
}

func (unimplemented) MemAgentMemcgSet(context.Context, *pb.MemAgentMemcgConfig) (*emptypb.Empty, error) {
	return nil, no("MemAgentMemcgSet")
}

func (unimplemented) MemAgentCompactSet(context.Context, *pb.MemAgentCompactConfig) (*emptypb.Empty, error) {
	return nil, no("MemAgentCompactSet")
}

func (unimplemented) MemHotplugByProbe(context.Context, *pb.MemHotplugByProbeRequest) (*emptypb.Empty, error) {
	return nil, no("MemHotplugByProbe")
}

func (unimplemented) AddSwap(context.Context, *pb.AddSwapRequest) (*emptypb.Empty, error) {
	return nil, no("AddSwap")
}

func (unimplemented) AddSwapPath(context.Context, *pb.AddSwapPathRequest) (*emptypb.Empty, error) {
	return nil, no("AddSwapPath")
}

func (unimplemented) GetVolumeStats(context.Context, *pb.VolumeStatsRequest) (*pb.VolumeStatsResponse, error) {
	return nil, no("GetVolumeStats")
}

func (unimplemented) ResizeVolume(context.Context, *pb.ResizeVolumeRequest) (*emptypb.Empty, error) {
	return nil, no("ResizeVolume")
}

func (unimplemented) SetPolicy(context.Context, *pb.SetPolicyRequest) (*emptypb.Empty, error) {
	return nil, no("SetPolicy")
}

var _ pb.AgentServiceService = (*Agent)(nil)
