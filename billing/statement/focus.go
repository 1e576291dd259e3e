package statement

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"cumulet.io/billing/ledger"
	"cumulet.io/billing/price"
)

// FocusOptions are names that the export carries; empty ones become "Cumulet".
type FocusOptions struct {
	// Provider makes the service available, Publisher made it, InvoiceIssuer bills it (FOCUS 1.2, columns of these names).
	Provider, Publisher, InvoiceIssuer string
}

// focusColumns are the columns of FOCUS 1.2's Cost and Usage dataset that the export has: all that are mandatory, and
// the conditional and recommended ones that apply to container instances.
func focusColumns() []string {
	return []string{"AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType", "BillingCurrency",
		"BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency",
		"ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice",
		"EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity",
		"PricingUnit", "ProviderName", "PublisherName", "RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType",
		"ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId",
		"SubAccountId", "SubAccountName", "SubAccountType", "Tags"}
}

// WriteFOCUS writes the statement as CSV by the FinOps Open Cost and Usage Specification 1.2: a row for each line, with
// exact costs, and one adjustment row for the rounding, so that BilledCost sums to the statement's total. Corrections
// of earlier months have ChargeClass Correction. null is an empty field.
func (s *Statement) WriteFOCUS(w io.Writer, o FocusOptions) error {
	for _, name := range []*string{&o.Provider, &o.Publisher, &o.InvoiceIssuer} {
		if *name == "" {
			*name = "Cumulet"
		}
	}
	columns := focusColumns()
	out := csv.NewWriter(w)
	if err := out.Write(columns); err != nil {
		return fmt.Errorf("write FOCUS: %w", err)
	}
	lives := map[string]*InstanceSums{}
	for i := range s.ByInstance {
		lives[s.ByInstance[i].Instance] = &s.ByInstance[i]
	}
	record := make([]string, len(columns))
	emit := func(row map[string]string) error {
		for i, c := range columns {
			record[i] = row[c]
		}
		return out.Write(record)
	}
	for i := range s.Lines {
		row, err := s.focusRow(&s.Lines[i], lives[s.Lines[i].Instance], o)
		if err == nil {
			err = emit(row)
		}
		if err != nil {
			return fmt.Errorf("write FOCUS: %w", err)
		}
	}
	if !s.Rounding.IsZero() {
		row := s.focusBase(o)
		row["ChargeCategory"], row["ChargeFrequency"] = "Adjustment", "One-Time"
		row["ChargeDescription"] = "Rounding of the statement, half away from zero"
		row["ChargePeriodStart"], row["ChargePeriodEnd"] = stamp(s.From), stamp(s.To)
		row["BilledCost"], row["EffectiveCost"] = s.Rounding.String(), s.Rounding.String()
		row["ListCost"], row["ContractedCost"] = s.Rounding.String(), s.Rounding.String()
		if err := emit(row); err != nil {
			return fmt.Errorf("write FOCUS: %w", err)
		}
	}
	out.Flush()
	if err := out.Error(); err != nil {
		return fmt.Errorf("write FOCUS: %w", err)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// focusBase is what every row has.
func (s *Statement) focusBase(o FocusOptions) map[string]string {
	return map[string]string{
		"BillingAccountId": s.Org, "BillingAccountName": s.Org, "BillingAccountType": "Organization",
		"BillingCurrency": string(s.Currency), "BillingPeriodStart": stamp(s.From), "BillingPeriodEnd": stamp(s.To),
		"InvoiceId": s.Org + "/" + s.Period, "InvoiceIssuerName": o.InvoiceIssuer, "ProviderName": o.Provider, "PublisherName": o.Publisher,
		"ServiceCategory": "Compute", "ServiceSubcategory": "Containers", "ServiceName": "Container Instances",
	}
}

func (s *Statement) focusRow(line *ledger.Line, v *InstanceSums, o FocusOptions) (map[string]string, error) {
	row := s.focusBase(o)
	unit, meter := "vCPU-Seconds", "vCPU"
	if line.Dimension == price.GiBSecond {
		unit, meter = "GiB-Seconds", "Memory"
	}
	details, err := json.Marshal(map[string]string{"SandboxClass": v.SandboxClass, "Size": v.Size.Class, "Phase": string(line.Phase),
		"PriceVersion": line.PriceVersion})
	if err != nil {
		return nil, err
	}
	amount, quantity, rate := line.Amount.String(), line.Quantity.String(), line.Rate.String()
	sku := fmt.Sprintf("cis-%s-%s-%s", v.SandboxClass, line.Phase, line.Dimension)
	for k, value := range map[string]string{
		"BilledCost": amount, "EffectiveCost": amount, "ListCost": amount, "ContractedCost": amount,
		"ListUnitPrice": rate, "ContractedUnitPrice": rate, "PricingCategory": "Standard",
		"PricingQuantity": quantity, "PricingUnit": unit, "ConsumedQuantity": quantity, "ConsumedUnit": unit,
		"ChargeCategory": "Usage", "ChargeFrequency": "Usage-Based",
		"ChargePeriodStart": stamp(line.Start), "ChargePeriodEnd": stamp(line.End),
		"ChargeDescription": fmt.Sprintf("%s %s of a %s instance (%s)", meter, line.Phase, v.SandboxClass, v.Size.Class),
		"RegionId":          v.Region, "RegionName": v.Region,
		"ResourceId": v.Instance, "ResourceName": v.Name, "ResourceType": "Container Instance",
		"SkuId": sku, "SkuMeter": meter + " " + string(line.Phase), "SkuPriceId": sku + "/" + v.Region + "/" + line.PriceVersion, "SkuPriceDetails": string(details),
		"Tags": "{}",
	} {
		row[k] = value
	}
	if line.Kind == ledger.Correction {
		row["ChargeClass"] = "Correction"
	}
	return row, nil
}
