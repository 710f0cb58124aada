//! `struct mptcp_info` and `struct tcp_info` as Python objects with one attribute a field.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use super::integer::whole;
use crate::{abi::mptcp_info, abi::tcp_info};

/// One read-only attribute a row of a structure's table, and the class's `new`, if it has one.
macro_rules! getters {
    ($class:ident, $module:ident, { $($new:tt)* } $(since $size:literal { $($name:ident : $kind:expr, $offset:literal, $doc:literal;)* })*) => {
        #[pymethods]
        impl $class {
            $($new)*

            $($(
                #[doc = $doc]
                #[getter]
                fn $name(&self) -> Option<u64> {
                    $module::field::$name.read(self.0.bytes())
                }
            )*)*

            /// Return the fields by name, in the structure's order; those that this kernel lacks are None.
            fn asdict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
                // The names are made once: making them anew would take most of the time.
                static NAMES: PyOnceLock<Vec<Py<PyString>>> = PyOnceLock::new();
                let names = NAMES.get_or_init(py, || {
                    $module::FIELDS.iter().map(|field| PyString::intern(py, field.name).unbind()).collect()
                });
                let fields = PyDict::new(py);
                for (name, field) in names.iter().zip($module::FIELDS) {
                    fields.set_item(name, field.read(self.0.bytes()))?;
                }
                Ok(fields)
            }

            fn __repr__(&self) -> String {
                let fields = $module::FIELDS.iter().filter_map(|field| {
                    field.read(self.0.bytes()).map(|value| format!("{}={value}", field.name))
                });
                format!("{}({})", stringify!($class), fields.collect::<Vec<_>>().join(", "))
            }

            fn __eq__(&self, other: &Self) -> bool {
                self.0 == other.0
            }
        }
    };
}

/// ``struct mptcp_info`` of a connection at one moment.
///
/// Read by MPTCP_INFO (getsockopt at SOL_MPTCP), or by inet_diag for a Connection. No privilege. Fields have the
/// kernel's names without the prefix ``mptcpi_``; a field that this kernel lacks is None.
#[pyclass(frozen, module = "mptcp")]
pub struct Info(pub mptcp_info::Info);

macro_rules! info_getters {
    ($($rows:tt)*) => { getters!(Info, mptcp_info, {} $($rows)*); };
}
mptcp_info::info_fields!(info_getters);

/// ``struct tcp_info`` of one subflow at one moment.
///
/// Read by MPTCP_FULL_INFO (getsockopt at SOL_MPTCP), or by inet_diag for a Connection. No privilege. Fields have the
/// kernel's names without the prefix ``tcpi_``; a field that this kernel lacks is None.
///
/// For tests, one can be created with the fields as keyword arguments: ``state`` is ESTABLISHED and the others are 0 unless
/// given. Raises TypeError for what is not a field or not an int, ValueError for what the field cannot hold.
#[pyclass(frozen, module = "mptcp")]
pub struct TcpInfo(pub tcp_info::TcpInfo);

macro_rules! tcp_info_getters {
    ($($rows:tt)*) => {
        getters!(TcpInfo, tcp_info, {
            #[new]
            #[pyo3(signature = (**fields))]
            fn new(fields: Option<&Bound<'_, PyDict>>) -> PyResult<TcpInfo> {
                let mut values = Vec::new();
                for (name, value) in fields.into_iter().flatten() {
                    let name: String = name.extract()?;
                    let field = tcp_info::FIELDS.iter().find(|field| field.name == name);
                    let field = field
                        .ok_or_else(|| PyTypeError::new_err(format!("struct tcp_info has no field {name:?}")))?;
                    let number = whole::<u64>(&name, &value)?;
                    if number > field.most() {
                        return Err(PyValueError::new_err(format!("{name} must be from 0 to {}", field.most())));
                    }
                    values.push((field, number));
                }
                Ok(TcpInfo(tcp_info::TcpInfo::of(values)))
            }
        } $($rows)*);
    };
}
tcp_info::tcp_info_fields!(tcp_info_getters);
