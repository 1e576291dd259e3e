package role

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// tracing sends traces when an endpoint is configured; trace context is passed on in any case.
func (p *process) tracing(ctx context.Context, roles []Name) error {
	otel.SetTextMapPropagator(propagation.TraceContext{})
	if p.cfg.Tracing.Endpoint == "" {
		return nil
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(p.cfg.Tracing.Endpoint))
	if err != nil {
		return fmt.Errorf("tracing.endpoint: %w", err)
	}
	name := "cisd"
	if len(roles) == 1 {
		name += "-" + string(roles[0])
	}
	provider := trace.NewTracerProvider(
		trace.WithBatcher(exporter),
		trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(p.cfg.Tracing.SampleRatio))),
		trace.WithResource(resource.NewSchemaless(attribute.String("service.name", name), attribute.String("service.version", p.version),
			attribute.String("host.name", p.cfg.Node.Name))))
	otel.SetTracerProvider(provider)
	p.close = append(p.close, func() error {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return provider.Shutdown(stop)
	})
	return nil
}
