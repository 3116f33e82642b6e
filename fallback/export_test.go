package fallback

// Lean makes every restore take out what goes before it makes what comes.
func (o Options) Lean() Options {
	o.hooks.lean = true
	return o
}

// Old makes the driver do without what older kernels and other filesystems do
// not have.
func (o Options) Old() Options {
	o.hooks = hooks{steps: true, noClone: true, noCopy: true, noExchange: true, inTree: true, logMax: 1}
	return o
}
