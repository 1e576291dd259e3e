package vnode

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/cache"
)

type sharedInformer interface {
	AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error)
}

// slim drops what nobody reads before an object is kept.
func slim(o any) (any, error) {
	if a, err := meta.Accessor(o); err == nil {
		a.SetManagedFields(nil)
	}
	return o, nil
}

// changeHandler calls changed for every object that comes, goes or becomes another after the first listing.
func changeHandler(kind string, changed func(kind, namespace, name string)) cache.ResourceEventHandler {
	tell := func(o any) {
		if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = d.Obj
		}
		if a, err := meta.Accessor(o); err == nil {
			changed(kind, a.GetNamespace(), a.GetName())
		}
	}
	return cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(o any, initial bool) {
			if !initial {
				tell(o)
			}
		},
		UpdateFunc: func(old, o any) {
			a, err1 := meta.Accessor(old)
			b, err2 := meta.Accessor(o)
			if err1 == nil && err2 == nil && a.GetResourceVersion() != b.GetResourceVersion() {
				tell(o)
			}
		},
		DeleteFunc: tell,
	}
}
